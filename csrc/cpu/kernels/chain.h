// The one stage of a chain that no other family has: adding the residual.
#pragma once
#include <cstdint>

#include "cpu/capability.h"
#include "fastnn/dtype.h"

namespace fastnn::cpu {

template <class T>
using AddArrays = void (*)(const T* a, const T* b, T* y, int64_t n);  // y = a + b; y may be a

struct ChainKernels {
  AddArrays<float> float32;
  AddArrays<double> float64;
  AddArrays<BFloat16> bfloat16;
  AddArrays<Float16> float16;
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(ChainKernels, chain)
