// csrc/ops/cuda/device.h for the emulator: kernels register for the CPU, in the place of the CPU's own.
#pragma once
#include <torch/library.h>

#include "cuda/dropout.h"
#include "ops/random.h"

#define FASTNN_CUDA_KERNELS(m) TORCH_LIBRARY_IMPL(fastnn, CPU, m)

namespace fastnn::ops {

struct [[maybe_unused]] DeviceGuard {
  explicit DeviceGuard(c10::Device) {}
};

inline cudaStream_t current_stream() {
  return nullptr;
}

inline cuda::GeneratorState next_generator_state(c10::Device) {
  const Stream next = next_stream();
  return {.seed = static_cast<uint64_t>(next.seed), .offset = static_cast<uint64_t>(next.offset)};
}

}  // namespace fastnn::ops
