// The CUDA kernels of fastnn::_dropout, of its form with the stream in device memory, and of the op that puts
// it there.
#include "cuda/dropout.h"

#include "ops/cuda/device.h"
#include "ops/tensors.h"

namespace fastnn::ops {
namespace {

Tensor run(const Tensor& x, double p, double scale, double kept, double dropped, int64_t length,
           uint64_t seed, uint64_t offset, const uint64_t* stream) {
  TORCH_CHECK(p >= 0 && p < 1, "fastnn::_dropout: p must be in [0, 1), but is ", p);
  TORCH_CHECK(length > 0 && x.numel() % length == 0, "fastnn::_dropout: length does not divide the input");
  const DeviceGuard guard(x.device());
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
                current_stream());
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
  const DeviceGuard guard(like.device());
  Tensor stream = at::empty({2}, like.options().dtype(at::kLong));
  cuda::write_stream(next_generator_state(like.device()),
                     reinterpret_cast<uint64_t*>(stream.data_ptr<int64_t>()), current_stream());
  return stream;
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_dropout", dropout_cuda);
  m.impl("_dropout_by", dropout_by_cuda);
  m.impl("_random_stream", random_stream_cuda);
}

}  // namespace
}  // namespace fastnn::ops
