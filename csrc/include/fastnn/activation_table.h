// Every element-wise activation: y = forward(x, a, b) and dx = backward(dy, s, a, b), where s is y or x.
//
// The formulas are templates over V: a register of a CPU (simd/math.h) or one number (scalar_math.h: CUDA
// threads, plain code). They may use operators and the functions that both headers have; they are found by V.
// To add one: a struct here, a line in FASTNN_ACTIVATIONS, a line in each of csrc/ops, functional and
// modules.
//
//   kReadsY        the backward reads y: less memory, as y is kept for the next layer anyway, and cheaper
//   kHalfReadsX    16-bit types read x all the same, in backward_x(): rounding y loses the slope or the kink
//   kA, kB         the parameters: torch's names and defaults
//   kCost          time per element in units of a copy's, for the choice of threads
//   supports(a, b) whether the formulas hold: that y tells which side of the kink x was on, for one
// Kinks, NaN and infinities as in torch's vectorised CPU kernels: a NaN of x reaches y always.
#pragma once
#include "fastnn/dtype.h"
#if !defined(FASTNN_ISA)
#include "fastnn/scalar_math.h"
#elif !defined(FASTNN_HOST_DEVICE)
#define FASTNN_HOST_DEVICE inline __attribute__((always_inline))
#endif

//   X(name in torch, struct)
#define FASTNN_ACTIVATIONS(X) \
  X(relu, Relu)               \
  X(leaky_relu, LeakyRelu)    \
  X(elu, Elu)                 \
  X(sigmoid, Sigmoid)         \
  X(tanh, Tanh)               \
  X(relu6, Relu6)             \
  X(selu, Selu)               \
  X(celu, Celu)               \
  X(gelu, Gelu)               \
  X(gelu_tanh, GeluTanh)      \
  X(silu, Silu)               \
  X(mish, Mish)               \
  X(softplus, Softplus)       \
  X(softsign, Softsign)       \
  X(hardtanh, Hardtanh)       \
  X(hardswish, Hardswish)     \
  X(hardsigmoid, Hardsigmoid) \
  X(logsigmoid, Logsigmoid)   \
  X(threshold, Threshold)     \
  X(tanhshrink, Tanhshrink)   \
  X(softshrink, Softshrink)   \
  X(hardshrink, Hardshrink)

namespace fastnn {

struct ActivationKind {
  enum : int {
#define FASTNN_KIND(name, Struct) k##Struct,
    FASTNN_ACTIVATIONS(FASTNN_KIND)
#undef FASTNN_KIND
        kCount
  };
};

namespace activations {

#define FASTNN_FORWARD \
  template <class V>   \
  static FASTNN_HOST_DEVICE V forward(V x, [[maybe_unused]] V a, [[maybe_unused]] V b)
#define FASTNN_BACKWARD_X \
  template <class V>      \
  static FASTNN_HOST_DEVICE V backward_x(V dy, V x, [[maybe_unused]] V a, [[maybe_unused]] V b)
#define FASTNN_BACKWARD \
  template <class V>    \
  static FASTNN_HOST_DEVICE V backward(V dy, V s, [[maybe_unused]] V a, [[maybe_unused]] V b)

struct Parameter {
  const char* name = nullptr;  // null: the activation has no such parameter
  double value = 0;
};

template <bool reads_y, int cost>
struct Traits {
  static constexpr bool kReadsY = reads_y;
  static constexpr int kCost = cost;
  static constexpr bool kHalfReadsX = false;
  static constexpr Parameter kA{}, kB{};
  static constexpr bool supports(double, double) { return true; }
};

constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kSqrtHalf = 0.70710678118654752440, kSqrtTwoOverPi = 0.79788456080286535588;

// 0, or NaN for an infinite x: what torch's product and quotient rules give there.
template <class V>
FASTNN_HOST_DEVICE V nan_if_infinite(V x) {
  return x * V(0);
}

struct Relu : Traits<true, 1> {
  FASTNN_FORWARD { return max(V(0), x); }  // this order keeps a NaN
  FASTNN_BACKWARD { return select(s <= V(0), V(0), dy); }
};

struct LeakyRelu : Traits<true, 1> {
  static constexpr Parameter kA{"negative_slope", 0.01};
  static constexpr bool supports(double a, double) { return a >= 0; }
  FASTNN_FORWARD { return select(x > V(0), x, x * a); }
  FASTNN_BACKWARD { return select(s > V(0), dy, dy * a); }
};

struct Elu : Traits<true, 3> {  // a exp(x) = y + a
  static constexpr bool kHalfReadsX = true;
  static constexpr Parameter kA{"alpha", 1};
  static constexpr bool supports(double a, double) { return a >= 0; }
  FASTNN_FORWARD { return select(x > V(0), x, a * expm1(x)); }
  FASTNN_BACKWARD { return select(s > V(0), dy, dy * (s + a)); }
  FASTNN_BACKWARD_X { return select(x > V(0), dy, dy * (a * exp(x))); }
};

struct Sigmoid : Traits<true, 4> {
  FASTNN_FORWARD { return sigmoid(x); }
  FASTNN_BACKWARD { return dy * (V(1) - s) * s; }
};

struct Tanh : Traits<true, 4> {
  FASTNN_FORWARD { return tanh(x); }
  FASTNN_BACKWARD { return dy * (V(1) - s * s); }
};

struct Hardtanh : Traits<true, 1> {
  static constexpr bool kHalfReadsX = true;
  static constexpr Parameter kA{"min_val", -1}, kB{"max_val", 1};
  FASTNN_FORWARD { return min(b, max(a, x)); }
  FASTNN_BACKWARD { return select((s > a) & (s < b), dy, V(0)); }
  FASTNN_BACKWARD_X { return backward(dy, x, a, b); }
};

struct Relu6 : Traits<true, 1> {
  FASTNN_FORWARD { return Hardtanh::forward(x, V(0), V(6)); }
  FASTNN_BACKWARD { return Hardtanh::backward(dy, s, V(0), V(6)); }
};

struct Selu : Traits<true, 3> {
  static constexpr bool kHalfReadsX = true;
  FASTNN_FORWARD { return select(x > V(0), x * V(kSeluScale), V(kSeluScale * kSeluAlpha) * expm1(x)); }
  FASTNN_BACKWARD { return dy * select(s > V(0), V(kSeluScale), s + V(kSeluScale * kSeluAlpha)); }
  FASTNN_BACKWARD_X { return dy * select(x > V(0), V(kSeluScale), V(kSeluScale * kSeluAlpha) * exp(x)); }
};

struct Celu : Traits<true, 4> {  // exp(x / a) = y / a + 1
  static constexpr bool kHalfReadsX = true;
  static constexpr Parameter kA{"alpha", 1};
  static constexpr bool supports(double a, double) { return a > 0; }
  FASTNN_FORWARD { return select(x > V(0), x, a * expm1(x / a)); }
  FASTNN_BACKWARD { return select(s > V(0), dy, dy * (s / a + V(1))); }
  FASTNN_BACKWARD_X { return select(x > V(0), dy, dy * exp(x / a)); }
};

struct Gelu : Traits<false, 6> {  // x cdf(x); the derivative is cdf(x) + x pdf(x)
  FASTNN_FORWARD { return x * normal_cdf(x); }
  FASTNN_BACKWARD {
    const V pdf = V(0.5 * kSqrtHalf * 1.1283791670955125739) * exp(V(-0.5) * s * s);
    return dy * (normal_cdf(s) + s * pdf);
  }
};

struct GeluTanh
    : Traits<false, 5> {  // x (1 + tanh(u)) / 2 = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
  FASTNN_FORWARD { return x * sigmoid(V(2 * kSqrtTwoOverPi) * x * (V(1) + V(0.044715) * x * x)); }
  FASTNN_BACKWARD {
    // g = sigmoid(2u) and g (1 - g) from e = exp(-|2u|): 1 - g itself would have lost its digits.
    const V k(2 * kSqrtTwoOverPi), p = V(0.044715) * s * s, u = k * s * (V(1) + p);
    const V e = exp(-abs(u)), q = V(1) / (V(1) + e);
    const V g = select(u < V(0), e * q, q);
    return dy * (g + s * (e * q * q) * k * (V(1) + V(3) * p));
  }
};

struct Silu : Traits<false, 4> {
  FASTNN_FORWARD { return x * sigmoid(x); }
  FASTNN_BACKWARD {
    const V g = sigmoid(s);
    return dy * (g * (V(1) + s * (V(1) - g)));
  }
};

struct Mish : Traits<false, 4> {  // x tanh(log(1 + e^x)) = x n / (n + 2), n = e^x (e^x + 2)
  FASTNN_FORWARD {
    const V e = exp(min(V(20), x)), n = e * (e + V(2));
    return x * (n / (n + V(2)));
  }
  FASTNN_BACKWARD {
    const V t = min(V(20), s), e = exp(t), n = e * (e + V(2)), r = V(1) / (n + V(2));
    return dy * (r * (n + V(4) * (t * e) * (e + V(1)) * r) + nan_if_infinite(s));
  }
};

struct Softplus : Traits<false, 5> {
  static constexpr Parameter kA{"beta", 1}, kB{"threshold", 20};
  FASTNN_FORWARD {
    const V z = x * a;
    return select(z > b, x, softplus(z) * (V(1) / a));
  }
  FASTNN_BACKWARD {
    const V z = s * a;
    return select(z > b, dy, dy * sigmoid(z));
  }
};

struct Softsign : Traits<false, 2> {
  FASTNN_FORWARD { return x / (V(1) + abs(x)); }
  FASTNN_BACKWARD {
    const V r = V(1) / (V(1) + abs(s));
    return dy * (r * r + nan_if_infinite(s));
  }
};

struct Hardswish : Traits<false, 1> {
  FASTNN_FORWARD { return x * min(V(6), max(V(0), x + V(3))) / V(6); }
  FASTNN_BACKWARD {
    const V inside = dy * (s * V(1.0 / 3) + V(0.5));
    return select(s <= V(-3), V(0), select(s >= V(3), dy, inside));
  }
};

struct Hardsigmoid : Traits<true, 1> {  // torch's derivative is this float in float64 too
  FASTNN_FORWARD { return min(V(6), max(V(0), x + V(3))) / V(6); }
  FASTNN_BACKWARD { return select((s > V(0)) & (s < V(1)), dy * V(1.0f / 6), V(0)); }
};

struct Logsigmoid : Traits<false, 5> {
  FASTNN_FORWARD { return V(0) - softplus(-x); }
  FASTNN_BACKWARD { return dy * sigmoid(-s); }
};

struct Threshold : Traits<false, 1> {
  static constexpr Parameter kA{"threshold", 0}, kB{"value", 0};
  FASTNN_FORWARD { return select(x <= a, b, x); }
  FASTNN_BACKWARD { return select(s <= a, V(0), dy); }
};

struct Tanhshrink : Traits<false, 4> {
  FASTNN_FORWARD { return tanhshrink(x); }
  FASTNN_BACKWARD {
    const V t = tanh(s);
    return dy * t * t;
  }
};

struct Softshrink : Traits<false, 1> {  // x * 0 keeps a NaN, + 0 drops the sign
  static constexpr Parameter kA{"lambd", 0.5};
  static constexpr bool supports(double a, double) { return a >= 0; }
  FASTNN_FORWARD { return select(x > a, x - a, select(x < -a, x + a, x * V(0) + V(0))); }
  FASTNN_BACKWARD { return select((s > a) | (s < -a), dy, V(0)); }
};

struct Hardshrink : Traits<false, 1> {
  static constexpr Parameter kA{"lambd", 0.5};
  FASTNN_FORWARD { return select((x >= -a) & (x <= a), V(0), x); }
  FASTNN_BACKWARD { return select((s > a) | (s < -a), dy, V(0)); }
};

#undef FASTNN_FORWARD
#undef FASTNN_BACKWARD
#undef FASTNN_BACKWARD_X

// The derivative for tensors of type T, from what ActivationInfo::saves_y() says.
template <class F, class T, class V>
FASTNN_HOST_DEVICE V derivative(V dy, V s, V a, V b) {
  if constexpr (F::kHalfReadsX && sizeof(T) == 2) {
    return F::backward_x(dy, s, a, b);
  } else {
    return F::backward(dy, s, a, b);
  }
}

}  // namespace activations

// The table as data, in the order of ActivationKind.
struct ActivationInfo {
  const char* name;
  bool reads_y, half_reads_x;
  int cost;
  activations::Parameter a, b;
  bool (*supports)(double a, double b);

  constexpr bool saves_y(DType dtype) const {
    const bool half = dtype == DType::kBFloat16 || dtype == DType::kFloat16;
    return reads_y && !(half && half_reads_x);
  }
};
constexpr ActivationInfo kActivationInfo[] = {
#define FASTNN_INFO(name, Struct)    \
  {#name,                            \
   activations::Struct::kReadsY,     \
   activations::Struct::kHalfReadsX, \
   activations::Struct::kCost,       \
   activations::Struct::kA,          \
   activations::Struct::kB,          \
   activations::Struct::supports},
    FASTNN_ACTIVATIONS(FASTNN_INFO)
#undef FASTNN_INFO
};

}  // namespace fastnn
