// The CUDA kernels of fastnn::_layer_norm and fastnn::_layer_norm_backward.
#include "cuda/normalization.h"

#include "ops/cuda/device.h"
#include "ops/normalization.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

// y, and mean and 1 / sqrt(var + eps) of each row; no mean with rms.
Tensors layer_norm_cuda(const Tensor& x, int64_t dims, const OptionalTensor& weight,
                        const OptionalTensor& bias, double eps, bool rms) {
  const DeviceGuard guard(x.device());
  const Rows r = rows_of(x, dims);
  const auto type = compute_type(x);
  const Tensor dense = x.contiguous(), w = vector_of(weight, r.length, type),
               b = vector_of(bias, r.length, type);
  const auto leading = x.sizes().slice(0, x.dim() - dims);
  const auto statistics = x.options().dtype(type);
  Tensor y = at::empty(x.sizes(), x.options());
  Tensor mean = rms ? at::empty({0}, statistics) : at::empty(leading, statistics);
  Tensor rstd = at::empty(leading, statistics);
  cuda::layer_norm_forward({.dtype = dtype_of(x),
                            .rows = r.rows,
                            .length = r.length,
                            .rms = rms,
                            .x = dense.const_data_ptr(),
                            .y = y.data_ptr(),
                            .weight = data(w),
                            .bias = data(b),
                            .mean = rms ? nullptr : mean.data_ptr(),
                            .rstd = rstd.data_ptr(),
                            .eps = eps},
                           current_stream());
  return {y.contiguous(output_format(x, rms)), mean, rstd};
}

Tensors layer_norm_backward_cuda(const Tensor& dy, const Tensor& x, int64_t dims,
                                 const OptionalTensor& weight, const Tensor& mean, const Tensor& rstd, double,
                                 bool rms, std::array<bool, 3> mask) {
  const DeviceGuard guard(x.device());
  const Rows r = rows_of(x, dims);
  const auto type = compute_type(x);
  check_like(dy, x, "dy");
  const Tensor dense = x.contiguous(), dense_dy = dy.contiguous(), w = vector_of(weight, r.length, type);
  const Tensor m = rms ? Tensor() : vector_of(mean, r.rows, type), s = vector_of(rstd, r.rows, type);
  const auto shape = x.sizes().slice(x.dim() - dims);
  const auto parameter = [&](bool wants) {
    const auto options = x.options().dtype(type);
    return wants ? at::empty(shape, options) : at::empty({0}, options);
  };
  Tensor dx = mask[0] ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  Tensor dw = parameter(mask[1]), db = parameter(mask[2]);
  const LayerNormBackwardParams p = {.dtype = dtype_of(x),
                                     .rows = r.rows,
                                     .length = r.length,
                                     .rms = rms,
                                     .dy = dense_dy.const_data_ptr(),
                                     .x = dense.const_data_ptr(),
                                     .weight = data(w),
                                     .mean = data(m),
                                     .rstd = data(s),
                                     .dx = mask[0] ? dx.data_ptr() : nullptr,
                                     .dweight = mask[1] ? dw.data_ptr() : nullptr,
                                     .dbias = mask[2] ? db.data_ptr() : nullptr};
  const Tensor workspace = at::empty({cuda::layer_norm_workspace(p)}, x.options().dtype(type));
  cuda::layer_norm_backward(p, workspace.data_ptr(), current_stream());
  const auto wanted = parameter_type(x, weight);
  if (wanted == type) return {dx, dw, db};
  return {dx, dw.to(wanted), db.to(wanted)};
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_layer_norm", layer_norm_cuda);
  m.impl("_layer_norm_backward", layer_norm_backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
