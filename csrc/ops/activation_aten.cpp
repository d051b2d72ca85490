#include "ops/activation_aten.h"

#include "fastnn/activation_table.h"

namespace fastnn::ops {
namespace {

using activations::kSeluAlpha;
using activations::kSeluScale;
using at::Tensor;

// A struct per activation, named as in the table, so that a missing or misplaced one does not compile.
template <int kind>
struct Aten;

#define FASTNN_ATEN(Struct, forward_expression, backward_expression)                        \
  template <>                                                                               \
  struct Aten<ActivationKind::k##Struct> {                                                  \
    static Tensor forward([[maybe_unused]] const Tensor& x, [[maybe_unused]] double a,      \
                          [[maybe_unused]] double b) {                                      \
      return forward_expression;                                                            \
    }                                                                                       \
    static Tensor backward(const Tensor& dy, const Tensor& s, [[maybe_unused]] bool s_is_y, \
                           [[maybe_unused]] double a, [[maybe_unused]] double b) {          \
      return backward_expression;                                                           \
    }                                                                                       \
  };

Tensor silu_gradient(const Tensor& dy, const Tensor& x) {
  const Tensor g = at::sigmoid(x);
  return dy * g * (1 + x * (1 - g));
}

Tensor mish_gradient(const Tensor& dy, const Tensor& x) {
  const Tensor t = at::tanh(at::softplus(x));
  return dy * (t + x * at::sigmoid(x) * (1 - t * t));
}

Tensor hardswish_gradient(const Tensor& dy, const Tensor& x) {
  const Tensor outside = at::where(x <= -3, at::zeros_like(dy), dy);
  return at::where((x > -3).logical_and(x < 3), dy * (x / 3 + 0.5), outside);
}

Tensor hardsigmoid_gradient(const Tensor& dy, const Tensor& y) {
  return at::where((y > 0).logical_and(y < 1), dy / 6, at::zeros_like(dy));
}

Tensor tanhshrink_gradient(const Tensor& dy, const Tensor& x) {
  const Tensor t = at::tanh(x);
  return dy * t * t;
}

// clang-format off
FASTNN_ATEN(Relu, at::relu(x), at::threshold_backward(dy, s, 0))
FASTNN_ATEN(LeakyRelu, at::leaky_relu(x, a), at::leaky_relu_backward(dy, s, a, /*self_is_result=*/true))
FASTNN_ATEN(Elu, at::elu(x, a), at::elu_backward(dy, a, 1, 1, s_is_y, s))
FASTNN_ATEN(Sigmoid, at::sigmoid(x), at::sigmoid_backward(dy, s))
FASTNN_ATEN(Tanh, at::tanh(x), at::tanh_backward(dy, s))
FASTNN_ATEN(Relu6, at::relu6(x), at::hardtanh_backward(dy, s, 0, 6))
FASTNN_ATEN(Selu, at::selu(x), at::elu_backward(dy, kSeluAlpha, kSeluScale, 1, s_is_y, s))
FASTNN_ATEN(Celu, at::celu(x, a), at::elu_backward(dy, a, 1, 1 / a, s_is_y, s))
FASTNN_ATEN(Gelu, at::gelu(x, "none"), at::gelu_backward(dy, s, "none"))
FASTNN_ATEN(GeluTanh, at::gelu(x, "tanh"), at::gelu_backward(dy, s, "tanh"))
FASTNN_ATEN(Silu, at::silu(x), silu_gradient(dy, s))
FASTNN_ATEN(Mish, at::mish(x), mish_gradient(dy, s))
FASTNN_ATEN(Softplus, at::softplus(x, a, b), at::softplus_backward(dy, s, a, b))
FASTNN_ATEN(Softsign, x / (x.abs() + 1), dy / (s.abs() + 1).square())
FASTNN_ATEN(Hardtanh, at::hardtanh(x, a, b), at::hardtanh_backward(dy, s, a, b))
FASTNN_ATEN(Hardswish, at::hardswish(x), hardswish_gradient(dy, s))
FASTNN_ATEN(Hardsigmoid, at::hardsigmoid(x), hardsigmoid_gradient(dy, s))
FASTNN_ATEN(Logsigmoid, at::log_sigmoid(x), dy * at::sigmoid(-s))
FASTNN_ATEN(Threshold, at::threshold(x, a, b), at::threshold_backward(dy, s, a))
FASTNN_ATEN(Tanhshrink, x - at::tanh(x), tanhshrink_gradient(dy, s))
FASTNN_ATEN(Softshrink, at::softshrink(x, a), at::softshrink_backward(dy, s, a))
FASTNN_ATEN(Hardshrink, at::hardshrink(x, a), at::hardshrink_backward(dy, s, a))
// clang-format on
#undef FASTNN_ATEN

constexpr ActivationAten kTable[] = {
#define FASTNN_ROW(name, Struct) \
  {Aten<ActivationKind::k##Struct>::forward, Aten<ActivationKind::k##Struct>::backward},
    FASTNN_ACTIVATIONS(FASTNN_ROW)
#undef FASTNN_ROW
};

}  // namespace

const ActivationAten& activation_aten(int kind) {
  return kTable[kind];
}

}  // namespace fastnn::ops
