// The inner loops of batch normalisation. "Rows" kernels serve [N, C, L], where a row is the L elements
// of one channel of one sample; "columns" kernels serve [N * L, C].
#pragma once
#include <cstdint>

#include "cpu/capability.h"
#include "fastnn/dtype.h"

namespace fastnn::cpu {

// Rows of `length` elements, `stride` apart: all of one channel (step 0), or of successive channels,
// from `channel` on and around at C (step 1).
struct BatchNormRows {
  int64_t rows, length, stride;
  int64_t channel, step, C;
};

template <class T>
struct BatchNormOps {
  using A = Compute<T>;

  // Mean and sum of squared differences from it, over `rows` rows or down each of `width` columns.
  void (*row_moments)(const T* x, int64_t rows, int64_t length, int64_t stride, double* mean, double* m2);
  void (*column_moments)(const T* x, int64_t rows, int64_t width, int64_t stride, double* mean, double* m2);
  // The same in plain double arithmetic, for one channel: x[i * outer + j * inner]. Slow; used where
  // the sums of the fast kernels overflowed or met an infinity.
  void (*wide_moments)(const T* x, int64_t rows, int64_t outer, int64_t length, int64_t inner, double* mean,
                       double* m2);

  // y = (x - mean) * scale + shift; the three are [C].
  void (*normalize_rows)(const T* x, T* y, BatchNormRows, const A* mean, const A* scale, const A* shift);
  void (*normalize_columns)(const T* x, T* y, int64_t rows, int64_t C, const A* mean, const A* scale,
                            const A* shift);

  // sum of dy and of dy * (x - mean).
  void (*row_sums)(const T* x, const T* dy, int64_t rows, int64_t length, int64_t stride, A mean, double* sum,
                   double* dot);
  void (*column_sums)(const T* x, const T* dy, int64_t rows, int64_t width, int64_t stride, const A* mean,
                      double* sum, double* dot);

  // dx = ((dy - shift) - (x - mean) * slope) * scale; the four are [C].
  void (*grad_rows)(const T* x, const T* dy, T* dx, BatchNormRows, const A* mean, const A* slope,
                    const A* shift, const A* scale);
  void (*grad_columns)(const T* x, const T* dy, T* dx, int64_t rows, int64_t C, const A* mean, const A* slope,
                       const A* shift, const A* scale);
};

struct BatchNormKernels {
  BatchNormOps<float> float32;
  BatchNormOps<double> float64;
  BatchNormOps<BFloat16> bfloat16;
  BatchNormOps<Float16> float16;
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(BatchNormKernels, batchnorm)
