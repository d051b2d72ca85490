// The functions of simd/math.h over an array, for tests: one table per instruction set, as the kernels have.
#pragma once
#include <cstdint>

#include "cpu/capability.h"

namespace fastnn::cpu {

struct MathProbeKernels {
  void (*float32)(int function, int64_t n, const float* x, float* y);
  void (*float64)(int function, int64_t n, const double* x, double* y);
};

}  // namespace fastnn::cpu

//   X(name)
#define FASTNN_MATH_FUNCTIONS(X) \
  X(exp) X(expm1) X(log) X(tanh) X(normal_cdf) X(sigmoid) X(softplus) X(tanhshrink)

FASTNN_DECLARE_KERNELS(MathProbeKernels, math_probe)
