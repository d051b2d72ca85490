// The functions of simd/math.h and the operations of simd/vec.h for one float or double, under the same
// names: a formula written as a template over V runs on a register, on a CUDA thread and in plain code.
#pragma once
#include <math.h>

#if defined(__CUDACC__)
#define FASTNN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTNN_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fastnn {

// max and min return the second operand where the two are unordered, as in vec.h.
#define FASTNN_SCALAR_MATH(T, suffix)                                      \
  FASTNN_HOST_DEVICE T select(bool mask, T a, T b) {                       \
    return mask ? a : b;                                                   \
  }                                                                        \
  FASTNN_HOST_DEVICE T max(T a, T b) {                                     \
    return a > b ? a : b;                                                  \
  }                                                                        \
  FASTNN_HOST_DEVICE T min(T a, T b) {                                     \
    return a < b ? a : b;                                                  \
  }                                                                        \
  FASTNN_HOST_DEVICE T abs(T x) {                                          \
    return ::fabs##suffix(x);                                              \
  }                                                                        \
  FASTNN_HOST_DEVICE T fma(T a, T b, T c) {                                \
    return ::fma##suffix(a, b, c);                                         \
  }                                                                        \
  FASTNN_HOST_DEVICE T exp(T x) {                                          \
    return ::exp##suffix(x);                                               \
  }                                                                        \
  FASTNN_HOST_DEVICE T expm1(T x) {                                        \
    return ::expm1##suffix(x);                                             \
  }                                                                        \
  FASTNN_HOST_DEVICE T tanh(T x) {                                         \
    return ::tanh##suffix(x);                                              \
  }                                                                        \
  FASTNN_HOST_DEVICE T tanhshrink(T x) {                                   \
    return x - ::tanh##suffix(x);                                          \
  }                                                                        \
  FASTNN_HOST_DEVICE T normal_cdf(T x) {                                   \
    return T(0.5) + T(0.5) * ::erf##suffix(x * T(0.70710678118654752440)); \
  }                                                                        \
  FASTNN_HOST_DEVICE T softplus(T x) {                                     \
    return max(T(0), x) + ::log1p##suffix(::exp##suffix(-abs(x)));         \
  }                                                                        \
  FASTNN_HOST_DEVICE T sigmoid(T x) {                                      \
    const T e = ::exp##suffix(-::fabs##suffix(x));                         \
    return (x < 0 ? e : T(1)) / (1 + e);                                   \
  }
FASTNN_SCALAR_MATH(float, f)
FASTNN_SCALAR_MATH(double, )
#undef FASTNN_SCALAR_MATH

}  // namespace fastnn
