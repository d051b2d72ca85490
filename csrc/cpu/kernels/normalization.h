// The inner loops that layer, RMS and group norm have beyond those of batch norm (sums per channel, y per
// channel; cpu/kernels/batchnorm.h).
#pragma once
#include <cstdint>

#include "cpu/capability.h"
#include "fastnn/dtype.h"

namespace fastnn::cpu {

constexpr int kNormTile = 4;  // rows that a NormTile has at most

// Forward of stretches of memory that are short enough for one lane of a register to add up.
template <class T>
struct NormUnits {
  using A = Compute<T>;
  const T* x;  // [units, length]
  T* y;        // [units, length]
  int64_t units, length;
  int64_t inner;           // elements that share a parameter: 1, or L of group norm
  int64_t group, G;        // parameters are [G, length / inner]; that of the first unit
  const A *weight, *bias;  // or null
  A *mean, *rstd;          // [units], written
  double* var;             // [units], written, or null
  double eps;
  bool rms;  // around 0: no mean is written
};

// Backward of some rows of layer norm, few enough to stay in cache between two looks. g stands for dy *
// weight.
template <class T>
struct NormTile {
  using A = Compute<T>;
  const T* x;              // [rows, length], `stride` apart
  const T* dy;             // as x
  T* dx;                   // as x, or null
  int rows;                // at most kNormTile
  int64_t length, stride;  // of the piece of the rows; a lane of a register sums all of it
  const A* weight;         // [length], or null: 1
  A mean[kNormTile], rstd[kNormTile];
  A shift[kNormTile], slope[kNormTile];  // for gradients(): mean of g, mean of g * (x - mean) * rstd^2
  A* dweight;                            // [length], added to; or null
  A* dbias;                              // [length], added to; null where dweight is
};

template <class T>
struct NormalizationOps {
  using A = Compute<T>;

  // Mean and sum of squared differences from it; 0 and the sum of squares with rms. `length`: as above.
  void (*moments)(const T* x, int64_t length, bool rms, double* mean, double* m2);
  void (*forward)(const NormUnits<T>&);
  // y = ((x - mean) * rstd - lost) * weight + bias; weight and bias are [length] or null.
  void (*normalize)(const T* x, T* y, int64_t length, A mean, A rstd, A lost, const A* weight, const A* bias);

  // Of each row: the sum of g and of g * (x - mean).
  void (*sums)(const NormTile<T>&, double* sum, double* dot);
  // dx = (g - shift - (x - mean) * slope) * rstd; dweight += dy * (x - mean) * rstd; dbias += dy.
  void (*gradients)(const NormTile<T>&);
  // total[i] = sum over blocks of parts[block * stride + i], i < width, in double.
  void (*add_blocks)(const A* parts, int64_t blocks, int64_t stride, int64_t width, A* total);

  // Group norm: dx = (dy * weight - shift - (x - mean) * slope) * rstd. Rows of `length` elements, one
  // after another, each with its own weight; or a matrix [rows, width] whose columns have their own five.
  void (*group_rows)(const T* x, const T* dy, T* dx, int64_t rows, int64_t length, A mean, A rstd, A shift,
                     A slope, const A* weight);
  void (*group_columns)(const T* x, const T* dy, T* dx, int64_t rows, int64_t width, const A* mean,
                        const A* rstd, const A* shift, const A* slope, const A* weight);
};

struct NormalizationKernels {
  NormalizationOps<float> float32;
  NormalizationOps<double> float64;
  NormalizationOps<BFloat16> bfloat16;
  NormalizationOps<Float16> float16;
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(NormalizationKernels, normalization)
