// The CUDA kernels of fastnn::_linear and fastnn::_linear_backward.
#include "ops/linear.h"

#include "cuda/linear.h"
#include "ops/cuda/device.h"
#include "ops/cuda/workspace.h"

namespace fastnn::ops {
namespace {

// torch's switch for products of floats: torch.backends.cuda.matmul.fp32_precision.
bool tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

Tensor linear_cuda(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const DeviceGuard guard(x.device());
  check_sizes(weight, {weight.size(0), x.size(-1)}, x, "weight");
  if (bias) check_sizes(*bias, {weight.size(0)}, x, "bias");
  Tensor y = at::empty(with_last(x.sizes(), weight.size(0)), x.options());
  const Tensor rows = as_matrix(x), b = bias ? bias->contiguous() : Tensor();
  const LinearParams p = {.dtype = dtype_of(x),
                          .shape = {.N = rows.size(0), .C = rows.size(1), .K = weight.size(0)},
                          .x = matrix(rows),
                          .w = matrix(weight),
                          .bias = b.defined() ? b.const_data_ptr() : nullptr,
                          .y = y.data_ptr()};
  const Tensor workspace = workspace_of(cuda::linear_workspace(p), x);
  cuda::linear_forward(p, tf32(), workspace.data_ptr(), current_stream());
  return y;
}

std::tuple<Tensor, Tensor, Tensor> linear_backward_cuda(const Tensor& dy, const OptionalTensor& x,
                                                        const OptionalTensor& weight,
                                                        std::array<bool, 3> mask) {
  const DeviceGuard guard(dy.device());
  const Tensor rows_dy = as_matrix(dy).contiguous(), rows_x = mask[1] ? as_matrix(*x) : Tensor();
  const int64_t K = rows_dy.size(1);
  const int64_t C = mask[1] ? rows_x.size(1) : mask[0] ? weight->size(1) : 0;
  if (mask[1]) check_sizes(rows_x, {rows_dy.size(0), C}, dy, "x");
  if (mask[0]) check_sizes(*weight, {K, C}, dy, "weight");
  const Tensor dx = mask[0] ? at::empty(with_last(dy.sizes(), C), dy.options()) : none(dy);
  const Tensor dw = mask[1] ? at::empty({K, C}, dy.options()) : none(dy);
  const Tensor db = mask[2] ? at::empty({K}, dy.options()) : none(dy);
  const LinearBackwardParams p = {.dtype = dtype_of(dy),
                                  .shape = {.N = rows_dy.size(0), .C = C, .K = K},
                                  .dy = matrix(rows_dy),
                                  .x = mask[1] ? matrix(rows_x) : LinearMatrix{},
                                  .w = mask[0] ? matrix(*weight) : LinearMatrix{},
                                  .dx = mask[0] ? dx.data_ptr() : nullptr,
                                  .dw = mask[1] ? dw.data_ptr() : nullptr,
                                  .db = mask[2] ? db.data_ptr() : nullptr};
  const Tensor workspace = workspace_of(cuda::linear_backward_workspace(p), dy);
  cuda::linear_backward(p, tf32(), workspace.data_ptr(), current_stream());
  return {dx, dw, db};
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_linear", linear_cuda);
  m.impl("_linear_backward", linear_backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
