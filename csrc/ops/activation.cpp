// Element-wise activations: front ops, private ops, autograd.
//
// This file is the live template of an op family:
//   schema -> kernels for CPU and Meta -> autograd -> front ops -> Python bindings.
#include "fastnn/activation.h"

#include "ops/front.h"

namespace fastnn::ops {
namespace {

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

// y = f(x). x: any shape and strides; y: the strides that torch's own element-wise ops would give.
Tensor activation_cpu(const Tensor& x, int64_t kind, double a, double b) {
  Tensor y = at::empty_like(x);
  const Tensor dense = with_layout_of(x, y);
  cpu::activation_forward({.kind = static_cast<int>(kind),
                           .dtype = dtype_of(x),
                           .n = x.numel(),
                           .x = dense.const_data_ptr(),
                           .y = y.data_ptr(),
                           .a = a,
                           .b = b});
  return y;
}

// dx = dy * f'(x), from `saved`, which is x or y as the table says.
Tensor activation_backward_cpu(const Tensor& dy, const Tensor& saved, int64_t kind, double a, double b) {
  Tensor dx = at::empty_like(saved);
  const Tensor dense_dy = with_layout_of(dy, dx), dense_saved = with_layout_of(saved, dx);
  cpu::activation_backward({.kind = static_cast<int>(kind),
                            .dtype = dtype_of(saved),
                            .n = saved.numel(),
                            .dy = dense_dy.const_data_ptr(),
                            .saved = dense_saved.const_data_ptr(),
                            .dx = dx.data_ptr(),
                            .a = a,
                            .b = b});
  return dx;
}

Tensor activation_meta(const Tensor& x, int64_t, double, double) { return at::empty_like(x); }
Tensor activation_backward_meta(const Tensor&, const Tensor& saved, int64_t, double, double) {
  return at::empty_like(saved);
}

// --- autograd --------------------------------------------------------------------------------------------

Tensor activation(const Tensor& x, int64_t kind, double a, double b) {
  static const auto op = handle<Tensor(const Tensor&, int64_t, double, double)>("fastnn::_activation");
  return op.call(x, kind, a, b);
}

Tensor activation_backward(const Tensor& dy, const Tensor& saved, int64_t kind, double a, double b) {
  static const auto op =
      handle<Tensor(const Tensor&, const Tensor&, int64_t, double, double)>("fastnn::_activation_backward");
  return op.call(dy, saved, kind, a, b);
}

struct ActivationFunction : torch::autograd::Function<ActivationFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x, int64_t kind, double a,
                        double b) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Tensor y = activation(x, kind, a, b);
    ctx->save_for_backward({y});
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["a"] = a;
    ctx->saved_data["b"] = b;
    return y;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& dy) {
    const auto saved = ctx->get_saved_variables();
    if (!dy[0].defined()) return {Tensor(), Tensor(), Tensor(), Tensor()};
    Tensor dx = activation_backward(dy[0], saved[0], ctx->saved_data["kind"].toInt(),
                                    ctx->saved_data["a"].toDouble(), ctx->saved_data["b"].toDouble());
    return {dx, Tensor(), Tensor(), Tensor()};
  }
};

Tensor activation_autograd(const Tensor& x, int64_t kind, double a, double b) {
  if (at::GradMode::is_enabled() && x.requires_grad()) return ActivationFunction::apply(x, kind, a, b);
  at::AutoDispatchBelowADInplaceOrView guard;
  return activation(x, kind, a, b);
}

// Under create_graph the backward itself is differentiated: torch's own backward formula, which is.
Tensor activation_backward_autograd(const Tensor& dy, const Tensor& saved, int64_t kind, double a, double b) {
  if (at::GradMode::is_enabled() && (dy.requires_grad() || saved.requires_grad())) {
    return at::threshold_backward(dy, saved, 0);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return activation_backward(dy, saved, kind, a, b);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_activation(Tensor x, int kind, float a, float b) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("_activation_backward(Tensor dy, Tensor saved, int kind, float a, float b) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_activation", activation_cpu);
  m.impl("_activation_backward", activation_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_activation", activation_meta);
  m.impl("_activation_backward", activation_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_activation", activation_autograd);
  m.impl("_activation_backward", activation_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

const Op relu_op("relu", "_activation", kFloating);

Tensor relu(const Tensor& input) {
  return front(
      relu_op, why_not(relu_op, input), [&] { return activation(input, 0, 0, 0); },
      [&] { return at::relu(input); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  // An implementation in the definition is CompositeImplicitAutograd: compilers decompose it.
  m.def("relu(Tensor input) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.impl("relu", c10::DispatchKey::CompositeImplicitAutograd, relu);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) { m.impl("relu", relu); }

FASTNN_BIND(activation, m) {
  m.def("relu", torch::wrap_pybind_function_no_gil(relu), pybind11::arg("input"));
}

}  // namespace
}  // namespace fastnn::ops
