// The CUDA kernels of fastnn::_group_norm, _instance_norm and _group_norm_backward.
#include "cuda/normalization.h"
#include "ops/cuda/device.h"
#include "ops/normalization.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

Tensors forward(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, int64_t G,
                const Running* running_mean, const Running* running_var, double momentum, double eps) {
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  const GroupNormShape shape = shape_of(x, G, format);
  const Tensor dense = x.contiguous(format), w = vector_of(weight, shape.C, type),
               b = vector_of(bias, shape.C, type);
  const auto statistics = x.options().dtype(type);
  Tensor y = at::empty(x.sizes(), x.options().memory_format(format));
  Tensor mean = at::empty({shape.N, G}, statistics), rstd = at::empty_like(mean);
  const Tensor workspace = at::empty({cuda::group_norm_workspace(shape)}, statistics);
  cuda::group_norm_forward({.dtype = dtype_of(x),
                            .shape = shape,
                            .x = dense.const_data_ptr(),
                            .y = y.data_ptr(),
                            .weight = data(w),
                            .bias = data(b),
                            .mean = mean.data_ptr(),
                            .rstd = rstd.data_ptr(),
                            .running_mean = running_mean ? running_mean->pointer() : nullptr,
                            .running_var = running_var ? running_var->pointer() : nullptr,
                            .momentum = momentum,
                            .eps = eps},
                           workspace.data_ptr(), current_stream());
  return {y, mean, rstd};
}

// y, and mean and 1 / sqrt(var + eps) of each sample and group [N, G].
Tensors group_norm_cuda(const Tensor& x, int64_t G, const OptionalTensor& weight, const OptionalTensor& bias,
                        double eps) {
  const DeviceGuard guard(x.device());
  return forward(x, weight, bias, G, nullptr, nullptr, 0, eps);
}

// The same with one channel per group; the running statistics change in place.
Tensors instance_norm_cuda(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                           const Tensor& running_mean, const Tensor& running_var, double momentum,
                           double eps) {
  TORCH_CHECK(x.dim() >= 2, "fastnn: an input of ", x.dim(), " dimensions");
  const DeviceGuard guard(x.device());
  const auto type = compute_type(x);
  const Running mean(running_mean, x.size(1), type), var(running_var, x.size(1), type);
  Tensors result = forward(x, weight, bias, x.size(1), &mean, &var, momentum, eps);
  mean.write_back();
  var.write_back();
  return result;
}

Tensors group_norm_backward_cuda(const Tensor& dy, const Tensor& x, int64_t G, const OptionalTensor& weight,
                                 const Tensor& mean, const Tensor& rstd, double, std::array<bool, 3> mask) {
  const DeviceGuard guard(x.device());
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  const GroupNormShape shape = shape_of(x, G, format);
  check_like(dy, x, "dy");
  const Tensor dense = x.contiguous(format), dense_dy = dy.contiguous(format),
               w = vector_of(weight, shape.C, type);
  const Tensor m = vector_of(mean, shape.N * G, type), r = vector_of(rstd, shape.N * G, type);
  const auto statistics = x.options().dtype(type);
  Tensor dx = mask[0] ? at::empty(x.sizes(), x.options().memory_format(format)) : at::empty({0}, x.options());
  Tensor dw = at::empty({mask[1] ? shape.C : 0}, statistics),
         db = at::empty({mask[2] ? shape.C : 0}, statistics);
  const Tensor workspace = at::empty({cuda::group_norm_workspace(shape)}, statistics);
  cuda::group_norm_backward({.dtype = dtype_of(x),
                             .shape = shape,
                             .dy = dense_dy.const_data_ptr(),
                             .x = dense.const_data_ptr(),
                             .weight = data(w),
                             .mean = data(m),
                             .rstd = data(r),
                             .dx = mask[0] ? dx.data_ptr() : nullptr,
                             .dweight = mask[1] ? dw.data_ptr() : nullptr,
                             .dbias = mask[2] ? db.data_ptr() : nullptr},
                            workspace.data_ptr(), current_stream());
  const auto wanted = parameter_type(x, weight);
  if (wanted == type) return {dx, dw, db};
  return {dx, dw.to(wanted), db.to(wanted)};
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_group_norm", group_norm_cuda);
  m.impl("_instance_norm", instance_norm_cuda);
  m.impl("_group_norm_backward", group_norm_backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
