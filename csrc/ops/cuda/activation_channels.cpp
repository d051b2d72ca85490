// The CUDA kernels of fastnn::_prelu, _glu and their gradients.
#include "ops/activation_channels.h"

#include "cuda/activation.h"
#include "ops/cuda/device.h"
#include "ops/vectors.h"

namespace fastnn::ops {
namespace {

Tensor prelu_cuda(const Tensor& x, const Tensor& w) {
  const DeviceGuard guard(x.device());
  Tensor y = at::empty_like(x);
  const Tensor dense = with_layout_of(x, y), weight = w.contiguous();
  const ChannelView v = channel_view(y, w);
  cuda::prelu_forward({.dtype = dtype_of(x),
                       .outer = v.outer,
                       .channels = v.channels,
                       .inner = v.inner,
                       .x = dense.const_data_ptr(),
                       .w = weight.const_data_ptr(),
                       .y = y.data_ptr()},
                      current_stream());
  return y;
}

std::tuple<Tensor, Tensor> prelu_backward_cuda(const Tensor& dy, const Tensor& x, const Tensor& w) {
  const DeviceGuard guard(x.device());
  check_like(dy, x, "dy");
  Tensor dx = at::empty_like(x), dw = at::empty(w.sizes(), w.options());
  const Tensor dense_dy = with_layout_of(dy, dx), dense_x = with_layout_of(x, dx), weight = w.contiguous();
  const ChannelView v = channel_view(dx, w);
  const PreluBackwardParams p = {.dtype = dtype_of(x),
                                 .outer = v.outer,
                                 .channels = v.channels,
                                 .inner = v.inner,
                                 .dy = dense_dy.const_data_ptr(),
                                 .x = dense_x.const_data_ptr(),
                                 .w = weight.const_data_ptr(),
                                 .dx = dx.data_ptr(),
                                 .dw = dw.data_ptr()};
  const Tensor workspace = at::empty({cuda::prelu_workspace(p)}, x.options().dtype(compute_type(x)));
  cuda::prelu_backward(p, workspace.data_ptr(), current_stream());
  return {dx, dw};
}

Tensor glu_cuda(const Tensor& x, int64_t dim) {
  const DeviceGuard guard(x.device());
  const auto order = memory_order(x);
  const Halves h = halves(x, order, dim);
  at::DimVector shape(h.x.sizes());
  shape[h.dim] /= 2;
  const Tensor y = at::empty(shape, x.options());
  cuda::glu_forward(
      {.dtype = dtype_of(x), .outer = h.outer, .half = h.half, .x = h.x.const_data_ptr(), .y = y.data_ptr()},
      current_stream());
  return unpermute(y, order);
}

Tensor glu_backward_cuda(const Tensor& dy, const Tensor& x, int64_t dim) {
  const DeviceGuard guard(x.device());
  at::DimVector half(x.sizes());
  half.at(dim) /= 2;
  check_sizes(dy, half, x, "dy");
  const auto order = memory_order(x);
  const Halves h = halves(x, order, dim);
  const Tensor dense_dy = dy.permute(order).contiguous(), dx = at::empty(h.x.sizes(), x.options());
  cuda::glu_backward({.dtype = dtype_of(x),
                      .outer = h.outer,
                      .half = h.half,
                      .dy = dense_dy.const_data_ptr(),
                      .x = h.x.const_data_ptr(),
                      .dx = dx.data_ptr()},
                     current_stream());
  return unpermute(dx, order);
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_prelu", prelu_cuda);
  m.impl("_prelu_backward", prelu_backward_cuda);
  m.impl("_glu", glu_cuda);
  m.impl("_glu_backward", glu_backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
