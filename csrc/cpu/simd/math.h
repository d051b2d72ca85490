// Elementary functions of Vec<float> and Vec<double>.
//
// float: error at most 2 units in the last place, 2.5 for normal_cdf, sigmoid and softplus, 3.5 for
// tanhshrink, 4 for tanh (tests/cpp/test_activation.cpp scans it), right at infinities, NaN, overflow and
// subnormal results, no tables. double: the C library, lane by lane.
//   exp      x = n ln2 + r, polynomial of r, exponent inserted (Cody and Waite; coefficients of Cephes)
//   expm1    the same with 2^n - 1 added last, so that small x keeps its digits
//   log      x = 2^e (1 + m), |m| <= 1/3, polynomial of m (N. Juffa's coefficients)
//   tanh     from a rational function for tanh(x / 2); normal_cdf(x) = (1 + erf(x / sqrt(2))) / 2 likewise
//   sigmoid  from exp(-|x|), which cannot overflow; softplus likewise, log(1 + u) a polynomial on [0, 1]
#pragma once
#include "cpu/simd/vec.h"

namespace {  // NOLINT: see vec.h

// Horner's rule: coefficients from the highest power down.
template <class V>
FASTNN_INLINE V polynomial(V, V c) {
  return c;
}
template <class V, class... Rest>
FASTNN_INLINE V polynomial(V x, V c, V next, Rest... rest) {
  return polynomial(x, fma(c, x, next), V(rest)...);
}

// Bit patterns to calculate with: unsigned, because any lane may hold a NaN or infinity and must wrap.
using Bits = Register<float>::Uint;
FASTNN_INLINE Bits to_unsigned(Vec<float> x) {
  return reinterpret_cast<Bits>(x.v);
}
FASTNN_INLINE Vec<float> from_unsigned(Bits bits) {
  return reinterpret_cast<Vec<float>::Raw>(bits);
}

// A whole number n, |n| < 2^22, as float and, in the low mantissa bits, plus 1.5 * 2^23.
struct Whole {
  static constexpr float kShift = 12582912.0f;
  Vec<float> shifted;
  FASTNN_INLINE Vec<float> value() const { return shifted - Vec<float>(kShift); }
};

// 2^n as what it adds to the exponent of a float.
FASTNN_INLINE Bits exponent_of(Whole n) {
  return to_unsigned(n.shifted) << 23;
}
// 2^n / 2^half for n - half in [-126, 127].
FASTNN_INLINE Vec<float> power_of_two(Whole n, int half = 0) {
  return from_unsigned(exponent_of(n) + static_cast<uint32_t>((127 - half) << 23));
}

// x * 2^n, rounded once, for n in [-252, 254].
FASTNN_INLINE Vec<float> scale(Vec<float> x, Whole n) {
  using V = Vec<float>;
#if defined(__AVX512F__)
  return (V::Raw)_mm512_scalef_ps((__m512)x.v, (__m512)n.value().v);
#else
  const Whole half = {fma(n.value(), V(0.5f), V(Whole::kShift))};
  return x * power_of_two(half) * power_of_two({n.value() - half.value() + V(Whole::kShift)});
#endif
}

// n = round(x / ln2) and r = x - n ln2, |r| <= ln2 / 2. The first part of ln2 has so few bits that its
// product with n is exact also without a fused multiply-add.
FASTNN_INLINE Vec<float> reduce_ln2(Vec<float> x, Whole& n) {
  using V = Vec<float>;
  n.shifted = fma(x, V(1.44269504088896341f), V(Whole::kShift));
  return fma(n.value(), V(2.12194440e-4f), fma(n.value(), V(-0.693359375f), x));
}

// exp(r) - 1 - r over r^2, |r| <= ln2 / 2.
FASTNN_INLINE Vec<float> exp_tail(Vec<float> r) {
  using V = Vec<float>;
  return polynomial(r, V(1.9875691500e-4f), V(1.3981999507e-3f), V(8.3334519073e-3f), V(4.1665795894e-2f),
                    V(1.6666665459e-1f), V(5.0000001201e-1f));
}

// exp(x) / 2^n.
FASTNN_INLINE Vec<float> exp_mantissa(Vec<float> x, Whole& n) {
  using V = Vec<float>;
  const V r = reduce_ln2(x, n);
  return fma(fma(exp_tail(r), r, V(1.0f)), r, V(1.0f));
}

FASTNN_INLINE Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  Whole n;
  // Normal results, the rule: n goes into the exponent and nothing needs a bound.
  if (__builtin_expect(all(abs(x) <= V(87.0f)), 1)) {
    const V y = exp_mantissa(x, n);
    return from_unsigned(to_unsigned(y) + exponent_of(n));
  }
  // Rounds to 0 from here on. Not left to the scaling: an underflow costs the processor some 150 cycles, and
  // exp of minus infinity is what masks are made of. x as min's second operand keeps a NaN.
  const auto zero = x < V(-103.98f);
  const V y = exp_mantissa(min(V(89.0f), select(zero, V(0.0f), x)), n);
  return select(zero, V(0.0f), scale(y, n));
}

// The same for x <= 0 without a branch, for rows with many minus infinities: 0 where the result is below the
// smallest normal float.
FASTNN_INLINE Vec<float> exp_or_zero(Vec<float> x) {
  using V = Vec<float>;
  Whole n;
  const V y = exp_mantissa(max(V(-87.0f), x), n);
  return select(x < V(-87.0f), V(0.0f), y * power_of_two(n));  // the product keeps a NaN
}

FASTNN_INLINE Vec<float> expm1(Vec<float> x) {
  using V = Vec<float>;
  Whole n;
  const V r = reduce_ln2(min(V(89.0f), max(V(-17.5f), x)), n);
  const V p = fma(exp_tail(r), r * r, r);
  // 2^n (1 + p) - 1 as 2 (2^(n-1) p + (2^(n-1) - 1/2)), because 2^128 is no float.
  const V h = power_of_two(n, 1);
  const V y = fma(h, p, h - V(0.5f));
  return select(abs(x) < V(3e-8f), x, y + y);
}

// The exponent e with x = 2^e (1 + m), |m| <= 1/3, in the exponent's place: 2/3 is where it steps.
FASTNN_INLINE Bits exponent_bits(Vec<float> x) {
  return (to_unsigned(x) - 0x3f2aaaab) & 0xff800000;
}

// The exponent may be negative.
FASTNN_INLINE Vec<float> int_to_float(Bits i) {
  return __builtin_convertvector(reinterpret_cast<Vec<float>::IntRaw>(i), Vec<float>::Raw);
}

// e ln2 + log(1 + m), |m| <= 1/3.
FASTNN_INLINE Vec<float> log_polynomial(Vec<float> m, Vec<float> e) {
  using V = Vec<float>;
  const V s = m * m;
  const V odd = polynomial(s, V(0.140869141f), V(0.139814854f), V(0.200120345f));
  const V even = polynomial(s, V(-0.130310059f), V(-0.121484190f), V(-0.166846052f), V(-0.249996200f));
  const V r = fma(fma(fma(odd, m, even), m, V(0.333331972f)), m, V(-0.5f));
  return fma(e, V(0.693147182f), fma(r, s, m));
}

FASTNN_INLINE Vec<float> log(Vec<float> x) {
  using V = Vec<float>;
  const auto tiny = x < V(1.17549435e-38f);
  const V u = select(tiny, x * V(8388608.0f), x);
  const auto e = exponent_bits(u);
  const V m = from_unsigned(to_unsigned(u) - e) - V(1.0f);
  V y = log_polynomial(m, fma(int_to_float(e), V(1.1920929e-7f), select(tiny, V(-23.0f), V(0.0f))));
  y = select(x < V(__builtin_inff()), y, x);  // infinity and NaN
  y = select(x == V(0.0f), V(-__builtin_inff()), y);
  return select(x < V(0.0f), V(__builtin_nanf("")), y);
}

// log(1 + e^x) = max(0, x) + log(1 + u), u = e^-|x|. (log(1 + u) - u) / u^2 on [0, 1]: a polynomial whose
// error is 9e-9 of log(1 + u) (least squares, reweighted).
FASTNN_INLINE Vec<float> softplus(Vec<float> x) {
  using V = Vec<float>;
  const V u = exp(-abs(x));
  const V tail =
      polynomial(u, V(-3.677453380e-3f), V(2.187538333e-2f), V(-6.092139706e-2f), V(1.102512330e-1f),
                 V(-1.556953341e-1f), V(1.977432072e-1f), V(-2.497509569e-1f), V(3.333224952e-1f), V(-0.5f));
  return max(V(0.0f), x) + fma(tail, u * u, u);
}

// (x - tanh(x)) / x^3 for |x| <= 1 as a polynomial of x^2: error 5e-9 (Remez).
FASTNN_INLINE Vec<float> tanh_tail(Vec<float> s) {
  using V = Vec<float>;
  return polynomial(s, V(-1.4282394e-4f), V(9.2360921e-4f), V(-3.2069536e-3f), V(8.6979510e-3f),
                    V(-2.1829585e-2f), V(5.3963421e-2f), V(-1.3333311e-1f), V(3.3333333e-1f));
}

// tanh(2w) = 2 tanh(w) / (1 + tanh(w)^2): with tanh(w) = n / d that is 2 n d / (d^2 + n^2), in which the
// rounding errors of n and d count for less the nearer the result is to 1. n / d is within 1.3e-8 of tanh(t /
// 2) (least squares, reweighted); its first term t / 2 is exact and added last.
FASTNN_INLINE Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  const V limit(9.02f), t = min(limit, abs(x)), s = t * t;  // rounds to 1 from there on
  const V p = polynomial(s, V(-3.462894583e-8f), V(3.8380474802e-5f), V(1.4176980662e-2f));
  const V n = fma(t * s, p, V(0.5f) * t);
  const V d = polynomial(s, V(1.0507707774e-3f), V(1.1168720663e-1f), V(1.0f));
  return copysign(select(t == limit, V(1.0f), (n + n) * d / fma(d, d, n * n)), x);
}

// 1 - tanh(t) = 2 / (exp(2t) + 1) for t >= 0.
FASTNN_INLINE Vec<float> one_minus_tanh(Vec<float> t) {
  using V = Vec<float>;
  return V(2.0f) / (exp(min(V(20.0f), t + t)) + V(1.0f));
}

// Twice the work of tanh() and within 1.5 units in the last place, for states that pass through it step after
// step.
FASTNN_INLINE Vec<float> tanh_fine(Vec<float> x) {
  using V = Vec<float>;
  const V t = abs(x), s = t * t;
  return copysign(select(t < V(1.0f), fma(-tanh_tail(s) * s, t, t), V(1.0f) - one_minus_tanh(t)), x);
}

// x - tanh(x) without the cancellation of small x.
FASTNN_INLINE Vec<float> tanhshrink(Vec<float> x) {
  using V = Vec<float>;
  const V t = abs(x), s = t * t;
  return copysign(select(t < V(1.0f), tanh_tail(s) * s * t, (t - V(1.0f)) + one_minus_tanh(t)), x) +
         V(0.0f);  // no -0, as of a difference
}

// The normal distribution's 1/2 + erf(x / sqrt(2)) / 2, with erf written as 2 n d / (d^2 + n^2) like tanh
// above. Error: 2^-23, of the sum and not of its part at negative x, as torch's.
FASTNN_INLINE Vec<float> normal_cdf(Vec<float> x) {
  using V = Vec<float>;
  const V limit(5.54f), t = max(-limit, min(limit, x)), s = t * t;
  const V n = t * polynomial(s, V(-1.5135135309e-07f), V(2.8313347203e-05f), V(1.7680965342e-03f),
                             V(2.8554540015e-02f), V(3.9894226808e-01f));
  const V d =
      polynomial(s, V(2.8499196456e-04f), V(8.9427258918e-03f), V(7.9087231575e-02f), V(1.0000000000e+00f));
  return select(t == -limit, V(0.0f), V(0.5f) + n * d / fma(d, d, n * n));
}

#define FASTNN_LANES_OF_DOUBLE(name)                                            \
  FASTNN_INLINE Vec<double> name(Vec<double> x) {                               \
    for (int i = 0; i < Vec<double>::N; ++i) x.v[i] = __builtin_##name(x.v[i]); \
    return x;                                                                   \
  }
FASTNN_LANES_OF_DOUBLE(exp)
FASTNN_LANES_OF_DOUBLE(expm1)
FASTNN_LANES_OF_DOUBLE(log)
FASTNN_LANES_OF_DOUBLE(log1p)
FASTNN_LANES_OF_DOUBLE(tanh)
#undef FASTNN_LANES_OF_DOUBLE

FASTNN_INLINE Vec<double> normal_cdf(Vec<double> x) {
  for (int i = 0; i < Vec<double>::N; ++i)
    x.v[i] = 0.5 + 0.5 * __builtin_erf(x.v[i] * 0.70710678118654752440);
  return x;
}

// From 0.5 on from exp, whose error counts less there than that of tanh would.
FASTNN_INLINE Vec<double> tanhshrink(Vec<double> x) {
  for (int i = 0; i < Vec<double>::N; ++i) {
    const double v = x.v[i], t = __builtin_fabs(v);
    x.v[i] =
        t < 0.5 ? v - __builtin_tanh(v) : __builtin_copysign((t - 1) + 2 / (__builtin_exp(t + t) + 1), v);
  }
  return x;
}

FASTNN_INLINE Vec<double> tanh_fine(Vec<double> x) {
  return tanh(x);
}
FASTNN_INLINE Vec<double> exp_or_zero(Vec<double> x) {
  return exp(x);
}
FASTNN_INLINE Vec<double> softplus(Vec<double> x) {
  return max(Vec<double>(0.0), x) + log1p(exp(-abs(x)));
}

// 1 / (1 + exp(-x)); the numerator is exp(x) below 0, so that tiny results keep their digits.
template <class T>
FASTNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using V = Vec<T>;
  const V e = exp(-abs(x));
  return select(x < V(T(0)), e, V(T(1))) / (V(T(1)) + e);
}

}  // namespace
