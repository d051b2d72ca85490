// The CUDA kernels of fastnn::_dropout, of its form with the stream in device memory, and of the op that puts
// it there.
#include "cuda/dropout.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "ops/tensors.h"

namespace fastnn::ops {
namespace {

Tensor run(const Tensor& x, double p, double scale, double kept, double dropped, int64_t length,
           uint64_t seed, uint64_t offset, const uint64_t* stream) {
  TORCH_CHECK(p >= 0 && p < 1, "fastnn::_dropout: p must be in [0, 1), but is ", p);
  TORCH_CHECK(length > 0 && x.numel() % length == 0, "fastnn::_dropout: length does not divide the input");
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor dense = x.contiguous();
  Tensor y = at::empty_like(dense);
  cuda::dropout({.dtype = dtype_of(x),
                 .decisions = x.numel() / length,
                 .length = length,
                 .x = dense.const_data_ptr(),
                 .y = y.data_ptr(),
                 .p = p,
                 .scale = scale,
                 .kept = kept,
                 .dropped = dropped,
                 .seed = seed,
                 .offset = offset,
                 .stream = stream},
                c10::cuda::getCurrentCUDAStream());
  return y;
}

Tensor dropout_cuda(const Tensor& x, double p, double scale, double kept, double dropped, int64_t length,
                    int64_t seed, int64_t offset) {
  return run(x, p, scale, kept, dropped, length, static_cast<uint64_t>(seed), static_cast<uint64_t>(offset),
             nullptr);
}

Tensor dropout_by_cuda(const Tensor& x, const Tensor& stream, double p, double scale, double kept,
                       double dropped, int64_t length) {
  TORCH_CHECK(stream.scalar_type() == at::kLong && stream.numel() == 2 && stream.is_contiguous() &&
                  stream.device() == x.device(),
              "fastnn::_dropout_by: stream must be two integers on the input's device");
  return run(x, p, scale, kept, dropped, length, 0, 0,
             reinterpret_cast<const uint64_t*>(stream.const_data_ptr<int64_t>()));
}

// Each call takes the generator's next offset; all its draws differ in the other half of the counter.
Tensor random_stream_cuda(const Tensor& like) {
  const c10::cuda::CUDAGuard guard(like.device());
  Tensor stream = at::empty({2}, like.options().dtype(at::kLong));
  auto* generator = at::get_generator_or_default<at::CUDAGeneratorImpl>(
      std::nullopt, at::cuda::detail::getDefaultCUDAGenerator(like.get_device()));
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
  cuda::write_stream(source, reinterpret_cast<uint64_t*>(stream.data_ptr<int64_t>()),
                     c10::cuda::getCurrentCUDAStream());
  return stream;
}

TORCH_LIBRARY_IMPL(fastnn, CUDA, m) {
  m.impl("_dropout", dropout_cuda);
  m.impl("_dropout_by", dropout_by_cuda);
  m.impl("_random_stream", random_stream_cuda);
}

}  // namespace
}  // namespace fastnn::ops
