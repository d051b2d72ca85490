// What Linear needs beside the matrix product: the sums of the columns of dy.
#pragma once
#include <cstdint>

#include "cpu/capability.h"

namespace fastnn::cpu {

// out[j] = sum over i of x[i * row + j * col], i < n, j < k.
struct LinearKernels {
  void (*column_sums)(const float* x, int64_t row, int64_t col, int64_t n, int64_t k, float* out);
  void (*column_sums_f64)(const double* x, int64_t row, int64_t col, int64_t n, int64_t k, double* out);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(LinearKernels, linear)
