// The CUDA kernels of fastnn::_rrelu, of its gradient, and of their form with the stream in device memory.
#include "cuda/activation.h"
#include "ops/cuda/device.h"
#include "ops/tensors.h"

namespace fastnn::ops {
namespace {

// y = sign <= 0 ? r x : x. Element i in memory takes word i.
Tensor run(const Tensor& x, const Tensor& sign, double lower, double upper, int64_t seed, int64_t offset,
           const uint64_t* stream) {
  const DeviceGuard guard(sign.device());
  check_like(x, sign, "x");
  const Tensor y = at::empty_like(sign), dense = with_layout_of(x, y), signs = with_layout_of(sign, y);
  cuda::rrelu({.dtype = dtype_of(sign),
               .n = sign.numel(),
               .x = dense.const_data_ptr(),
               .sign = signs.const_data_ptr(),
               .y = y.data_ptr(),
               .lower = lower,
               .upper = upper,
               .seed = static_cast<uint64_t>(seed),
               .offset = static_cast<uint64_t>(offset),
               .stream = stream},
              current_stream());
  return y;
}

Tensor rrelu_cuda(const Tensor& x, double lower, double upper, int64_t seed, int64_t offset) {
  return run(x, x, lower, upper, seed, offset, nullptr);
}

Tensor rrelu_backward_cuda(const Tensor& dy, const Tensor& saved, double lower, double upper, int64_t seed,
                           int64_t offset) {
  return run(dy, saved, lower, upper, seed, offset, nullptr);
}

Tensor rrelu_by_cuda(const Tensor& x, const Tensor& sign, const Tensor& stream, double lower, double upper) {
  TORCH_CHECK(stream.scalar_type() == at::kLong && stream.numel() == 2 && stream.is_contiguous() &&
                  stream.device() == x.device(),
              "fastnn::_rrelu_by: stream must be two integers on the input's device");
  return run(x, sign, lower, upper, 0, 0,
             reinterpret_cast<const uint64_t*>(stream.const_data_ptr<int64_t>()));
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_rrelu", rrelu_cuda);
  m.impl("_rrelu_backward", rrelu_backward_cuda);
  m.impl("_rrelu_by", rrelu_by_cuda);
}

}  // namespace
}  // namespace fastnn::ops
