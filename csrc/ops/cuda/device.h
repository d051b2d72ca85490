// What registration and kernels take from torch's CUDA. tests/cuda_emulator has another header of this name,
// for which the device is the CPU.
#pragma once
#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/dropout.h"

// FASTNN_CUDA_KERNELS(m) { m.impl("_softmax", softmax_cuda); }
#define FASTNN_CUDA_KERNELS(m) TORCH_LIBRARY_IMPL(fastnn, CUDA, m)

namespace fastnn::ops {

using DeviceGuard = c10::cuda::CUDAGuard;

inline cudaStream_t current_stream() {
  return c10::cuda::getCurrentCUDAStream();
}

// Takes the generator's next offset: where seed and offset are, when the kernel runs.
inline cuda::GeneratorState next_generator_state(c10::Device device) {
  auto* generator = at::get_generator_or_default<at::CUDAGeneratorImpl>(
      std::nullopt, at::cuda::detail::getDefaultCUDAGenerator(device.index()));
  at::PhiloxCudaState state;
  {
    const std::lock_guard lock(generator->mutex_);
    state = generator->philox_cuda_state(4);
  }
  cuda::GeneratorState source;
  if (state.captured_) {
    source.seed_pointer = state.seed_.ptr;
    source.offset_pointer = state.offset_.ptr;
    source.offset_in_graph = state.offset_intragraph_;
  } else {
    source.seed = state.seed_.val;
    source.offset = state.offset_.val;
  }
  return source;
}

}  // namespace fastnn::ops
