// The CUDA kernels of fastnn::_activation and fastnn::_activation_backward, in the library libfastnn_cuda.so.
#include "cuda/activation.h"

#include "ops/cuda/device.h"
#include "ops/tensors.h"

namespace fastnn::ops {
namespace {

Tensor activation_cuda(const Tensor& x, int64_t kind, double a, double b) {
  const DeviceGuard guard(x.device());
  Tensor y = at::empty_like(x);
  const Tensor dense = with_layout_of(x, y);
  cuda::activation_forward({.kind = static_cast<int>(kind),
                            .dtype = dtype_of(x),
                            .n = x.numel(),
                            .x = dense.const_data_ptr(),
                            .y = y.data_ptr(),
                            .a = a,
                            .b = b},
                           current_stream());
  return y;
}

Tensor activation_backward_cuda(const Tensor& dy, const Tensor& saved, int64_t kind, double a, double b) {
  const DeviceGuard guard(saved.device());
  Tensor dx = at::empty_like(saved);
  const bool broadcast = is_broadcast_number(dy);
  const Tensor dense_dy = broadcast ? dy : with_layout_of(dy, dx), dense_saved = with_layout_of(saved, dx);
  cuda::activation_backward({.kind = static_cast<int>(kind),
                             .dtype = dtype_of(saved),
                             .n = saved.numel(),
                             .dy = dense_dy.const_data_ptr(),
                             .dy_broadcast = broadcast,
                             .saved = dense_saved.const_data_ptr(),
                             .dx = dx.data_ptr(),
                             .a = a,
                             .b = b},
                            current_stream());
  return dx;
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_activation", activation_cuda);
  m.impl("_activation_backward", activation_backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
