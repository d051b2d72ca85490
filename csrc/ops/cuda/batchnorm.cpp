// The CUDA kernels of fastnn::_batch_norm_train, _batch_norm_eval and _batch_norm_backward.
#include "cuda/batchnorm.h"

#include "ops/batchnorm.h"
#include "ops/cuda/device.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

Tensor workspace_for(const Tensor& x, const BatchNormShape& shape) {
  return at::empty({cuda::batchnorm_workspace(shape)}, x.options().dtype(compute_type(x)));
}

// y, mean and 1 / sqrt(var + eps) of the batch [C]; the running statistics change in place.
Tensors train_cuda(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& running_mean, const OptionalTensor& running_var, double momentum,
                   double eps) {
  const DeviceGuard guard(x.device());
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  const Tensor dense = x.contiguous(format), w = vector_of(weight, x.size(1), type),
               b = vector_of(bias, x.size(1), type);
  Tensor y = at::empty(x.sizes(), x.options().memory_format(format));
  Tensor mean = at::empty({x.size(1)}, x.options().dtype(type)), invstd = at::empty_like(mean);
  const Running running_m(running_mean, x.size(1), type), running_v(running_var, x.size(1), type);
  const BatchNormShape shape = shape_of(x, format);
  const Tensor workspace = workspace_for(x, shape);
  cuda::batchnorm_forward({.dtype = dtype_of(x),
                           .shape = shape,
                           .x = dense.const_data_ptr(),
                           .y = y.data_ptr(),
                           .weight = data(w),
                           .bias = data(b),
                           .running_mean = running_m.pointer(),
                           .running_var = running_v.pointer(),
                           .save_mean = mean.data_ptr(),
                           .save_invstd = invstd.data_ptr(),
                           .training = true,
                           .momentum = momentum,
                           .eps = eps},
                          workspace.data_ptr(), current_stream());
  running_m.write_back();
  running_v.write_back();
  return {y, mean, invstd};
}

Tensor eval_cuda(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                 const Tensor& running_mean, const Tensor& running_var, double eps) {
  const DeviceGuard guard(x.device());
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  const Tensor dense = x.contiguous(format), w = vector_of(weight, x.size(1), type),
               b = vector_of(bias, x.size(1), type);
  const Tensor mean = vector_of(running_mean, x.size(1), type), var = vector_of(running_var, x.size(1), type);
  Tensor y = at::empty(x.sizes(), x.options().memory_format(format));
  const BatchNormShape shape = shape_of(x, format);
  const Tensor workspace = workspace_for(x, shape);
  cuda::batchnorm_forward({.dtype = dtype_of(x),
                           .shape = shape,
                           .x = dense.const_data_ptr(),
                           .y = y.data_ptr(),
                           .weight = data(w),
                           .bias = data(b),
                           .running_mean = data(mean),
                           .running_var = data(var),
                           .eps = eps},
                          workspace.data_ptr(), current_stream());
  return y;
}

Tensors backward_cuda(const Tensor& dy, const Tensor& x, const OptionalTensor& weight, const Tensor& mean,
                      const Tensor& spread, bool training, double eps, std::array<bool, 3> mask) {
  const DeviceGuard guard(x.device());
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  check_like(dy, x, "dy");
  const Tensor dense = x.contiguous(format), dense_dy = dy.contiguous(format),
               w = vector_of(weight, x.size(1), type);
  const Tensor m = vector_of(mean, x.size(1), type), s = vector_of(spread, x.size(1), type);
  const auto statistics = x.options().dtype(type);
  Tensor dx = mask[0] ? at::empty(x.sizes(), x.options().memory_format(format)) : at::empty({0}, x.options());
  Tensor dw = at::empty({mask[1] ? x.size(1) : 0}, statistics),
         db = at::empty({mask[2] ? x.size(1) : 0}, statistics);
  const BatchNormShape shape = shape_of(x, format);
  const Tensor workspace = workspace_for(x, shape);
  cuda::batchnorm_backward({.dtype = dtype_of(x),
                            .shape = shape,
                            .dy = dense_dy.const_data_ptr(),
                            .x = dense.const_data_ptr(),
                            .weight = data(w),
                            .mean = m.const_data_ptr(),
                            .invstd = training ? s.const_data_ptr() : nullptr,
                            .var = training ? nullptr : s.const_data_ptr(),
                            .dx = mask[0] ? dx.data_ptr() : nullptr,
                            .dweight = mask[1] ? dw.data_ptr() : nullptr,
                            .dbias = mask[2] ? db.data_ptr() : nullptr,
                            .training = training,
                            .eps = eps},
                           workspace.data_ptr(), current_stream());
  const auto parameter_type = weight && weight->defined() ? weight->scalar_type() : type;
  if (parameter_type == type) return {dx, dw, db};
  return {dx, dw.to(parameter_type), db.to(parameter_type)};
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_batch_norm_train", train_cuda);
  m.impl("_batch_norm_eval", eval_cuda);
  m.impl("_batch_norm_backward", backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
