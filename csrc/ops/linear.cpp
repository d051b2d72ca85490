// Linear: private ops on matrices with any strides, autograd, the front op.
#include "ops/linear.h"

#include "ops/bind.h"
#include "ops/front.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_sizes(weight, {weight.size(0), x.size(-1)}, x, "weight");
  if (bias) check_sizes(*bias, {weight.size(0)}, x, "bias");
  Tensor y = at::empty(with_last(x.sizes(), weight.size(0)), x.options());
  const Tensor rows = as_matrix(x), b = bias ? bias->contiguous() : Tensor();
  cpu::linear_forward({.dtype = dtype_of(x),
                       .shape = {.N = rows.size(0), .C = rows.size(1), .K = weight.size(0)},
                       .x = matrix(rows),
                       .w = matrix(weight),
                       .bias = b.defined() ? b.const_data_ptr() : nullptr,
                       .y = y.data_ptr()});
  return y;
}

// Gradients of input, weight and bias; those that `mask` does not ask for are empty tensors. The gradient of
// the input reads the weight, that of the weight the input.
Tensors linear_backward_cpu(const Tensor& dy, const OptionalTensor& x, const OptionalTensor& weight,
                            std::array<bool, 3> mask) {
  const Tensor rows_dy = as_matrix(dy), rows_x = mask[1] ? as_matrix(*x) : Tensor();
  const int64_t K = rows_dy.size(1);
  const int64_t C = mask[1] ? rows_x.size(1) : mask[0] ? weight->size(1) : 0;
  if (mask[1]) check_sizes(rows_x, {rows_dy.size(0), C}, dy, "x");
  if (mask[0]) check_sizes(*weight, {K, C}, dy, "weight");
  const Tensor dx = mask[0] ? at::empty(with_last(dy.sizes(), C), dy.options()) : none(dy);
  const Tensor dw = mask[1] ? at::empty({K, C}, dy.options()) : none(dy);
  const Tensor db = mask[2] ? at::empty({K}, dy.options()) : none(dy);
  cpu::linear_backward({.dtype = dtype_of(dy),
                        .shape = {.N = rows_dy.size(0), .C = C, .K = K},
                        .dy = matrix(rows_dy),
                        .x = mask[1] ? matrix(rows_x) : LinearMatrix{},
                        .w = mask[0] ? matrix(*weight) : LinearMatrix{},
                        .dx = mask[0] ? dx.data_ptr() : nullptr,
                        .dw = mask[1] ? dw.data_ptr() : nullptr,
                        .db = mask[2] ? db.data_ptr() : nullptr});
  return {dx, dw, db};
}

Tensor linear_meta(const Tensor& x, const Tensor& weight, const OptionalTensor&) {
  return at::empty_symint(with_last(x.sym_sizes(), weight.sym_size(0)), x.options());
}

Tensors linear_backward_meta(const Tensor& dy, const OptionalTensor& x, const OptionalTensor& weight,
                             std::array<bool, 3> mask) {
  const c10::SymInt K = dy.sym_size(-1), zero = 0;
  const auto empty = [&](const std::vector<c10::SymInt>& sizes) {
    return at::empty_symint(sizes, dy.options());
  };
  return {empty(mask[0] ? with_last(dy.sym_sizes(), weight->sym_size(1)) : std::vector{zero}),
          empty(mask[1] ? std::vector{K, x->sym_size(-1)} : std::vector{zero}),
          empty(std::vector{mask[2] ? K : zero})};
}

// --- autograd --------------------------------------------------------------------------------------------

Tensor linear_op_call(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  static const auto op = handle<decltype(linear_cpu)>("fastnn::_linear");
  return op.call(x, weight, bias);
}

Tensors linear_backward(const Tensor& dy, const OptionalTensor& x, const OptionalTensor& weight,
                        std::array<bool, 3> mask) {
  static const auto op = handle<decltype(linear_backward_cpu)>("fastnn::_linear_backward");
  return op.call(dy, x, weight, mask);
}

OptionalTensor optional(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

struct LinearGradient {
  static constexpr const char* kName = "LinearBackward";
  static constexpr int kInputs = 3, kSaved = 2;
  using Arguments = std::tuple<>;
  static variable_list backward(const variable_list& dy, const Saved<2>& saved, const Wanted<3>& wanted) {
    auto [dx, dw, db] = linear_backward(dy[0], optional(saved[0]), optional(saved[1]), wanted);
    return {wanted[0] ? dx : Tensor(), wanted[1] ? dw : Tensor(), wanted[2] ? db : Tensor()};
  }
};

Tensor linear_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_op_call(x, weight, bias);
  };
  if (!records(x, weight, bias)) return run();
  const auto node = make_node<LinearGradient>({}, x, weight, bias);
  const Tensor y = run();
  // Only what a gradient will read: a frozen weight keeps no input alive.
  node->output(y).keep(0, needs_grad(weight) ? x : Tensor()).keep(1, needs_grad(x) ? weight : Tensor());
  return y;
}

// Second derivatives: the same products from torch's differentiable ops.
Tensors linear_backward_autograd(const Tensor& dy, const OptionalTensor& x, const OptionalTensor& weight,
                                 std::array<bool, 3> mask) {
  if (!records(dy, x, weight)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return linear_backward(dy, x, weight, mask);
  }
  const auto rows = [](const Tensor& t) { return t.dim() == 1 ? t.unsqueeze(0) : t.flatten(0, -2); };
  return {mask[0] ? at::matmul(dy, *weight) : none(dy), mask[1] ? at::mm(rows(dy).t(), rows(*x)) : none(dy),
          mask[2] ? rows(dy).sum(0) : none(dy)};
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "_linear_backward(Tensor dy, Tensor? input, Tensor? weight, bool[3] mask) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_linear", linear_cpu);
  m.impl("_linear_backward", linear_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_linear", linear_meta);
  m.impl("_linear_backward", linear_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_linear", linear_autograd);
  m.impl("_linear_backward", linear_backward_autograd);
}

// --- front op --------------------------------------------------------------------------------------------

const Op linear_op("linear", "_linear", kFloatDouble | kProduct, /*autocast=*/true);

const char* why_not_linear(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  if (const char* reason = why_not(linear_op, input, weight, bias)) return reason;
  if (input.dim() < 1 || weight.dim() != 2 || input.size(-1) != weight.size(1)) return "shapes";
  if (bias.defined() && (bias.dim() != 1 || bias.size(0) != weight.size(0))) return "a bias of another shape";
  return nullptr;
}

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  return front(
      linear_op, why_not_linear(input, weight, bias.value_or(Tensor())),
      [&] { return linear_autograd(input, weight, bias); }, [&] { return at::linear(input, weight, bias); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.impl("linear", c10::DispatchKey::CompositeImplicitAutograd, linear);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("linear", linear);
}

FASTNN_BIND(linear, m) {
  bind_front<linear>(m, "linear", {"input", "weight", "bias"});
}

}  // namespace
}  // namespace fastnn::ops
