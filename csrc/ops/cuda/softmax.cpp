// The CUDA kernels of fastnn::_softmax and fastnn::_softmax_backward.
#include "cuda/softmax.h"

#include "ops/cuda/device.h"
#include "ops/tensors.h"

namespace fastnn::ops {
namespace {

// Contiguous whatever the layout of x, as torch's.
Tensor softmax_cuda(const Tensor& x, int64_t dim, bool log, bool negate) {
  const DeviceGuard guard(x.device());
  const Tensor dense = x.contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  const DimensionView v = dimension_view(y, dim);
  cuda::softmax_forward({.dtype = dtype_of(x),
                         .outer = v.outer,
                         .length = v.length,
                         .inner = v.inner,
                         .log = log,
                         .negate = negate,
                         .x = dense.const_data_ptr(),
                         .y = y.data_ptr()},
                        current_stream());
  return y;
}

Tensor softmax_backward_cuda(const Tensor& dy, const Tensor& y, int64_t dim, bool log, bool negate) {
  const DeviceGuard guard(y.device());
  check_like(dy, y, "dy");
  const Tensor dense_dy = dy.contiguous(), dense_y = y.contiguous();
  Tensor dx = at::empty(y.sizes(), y.options());
  const DimensionView v = dimension_view(y, dim);
  cuda::softmax_backward({.dtype = dtype_of(y),
                          .outer = v.outer,
                          .length = v.length,
                          .inner = v.inner,
                          .log = log,
                          .negate = negate,
                          .dy = dense_dy.const_data_ptr(),
                          .y = dense_y.const_data_ptr(),
                          .dx = dx.data_ptr()},
                         current_stream());
  return dx;
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_softmax", softmax_cuda);
  m.impl("_softmax_backward", softmax_backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
