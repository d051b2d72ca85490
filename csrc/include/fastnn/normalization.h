// Normalisation by statistics of the sample itself, y = (x - mean) / sqrt(var + eps) * weight + bias: what
// the kernels need to know.
//
// Layer norm: x is [rows, length], statistics per row, parameters per element; RMS norm is the same around
// 0 instead of the mean. Group norm: x is [N, C, L] (L = product of the spatial sizes) or, channels last,
// [N, L, C], statistics per sample and group of C / G channels, parameters per channel; instance norm has
// G = C. Parameters and statistics are in the compute type of dtype: double for float64, float otherwise.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

struct LayerNormParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, length = 0;
  bool rms = false;              // around 0, not the mean
  const void* x = nullptr;       // [rows, length]
  void* y = nullptr;             // [rows, length]
  const void* weight = nullptr;  // [length], or null: 1
  const void* bias = nullptr;    // [length], or null: 0
  void* mean = nullptr;          // [rows], written; null for RMS norm
  void* rstd = nullptr;          // [rows], written: 1 / sqrt(var + eps)
  double eps = 0;
};

struct LayerNormBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t rows = 0, length = 0;
  bool rms = false;
  const void* dy = nullptr;      // [rows, length]
  const void* x = nullptr;       // [rows, length]
  const void* weight = nullptr;  // [length], or null: 1
  const void* mean = nullptr;    // [rows]; null for RMS norm
  const void* rstd = nullptr;    // [rows]
  void* dx = nullptr;            // [rows, length], or null
  void* dweight = nullptr;       // [length], or null
  void* dbias = nullptr;         // [length], or null
};

struct GroupNormShape {
  int64_t N = 0, C = 0, L = 0, G = 1;
  bool channels_last = false;
};

struct GroupNormParams {
  DType dtype = DType::kFloat32;
  GroupNormShape shape;
  const void* x = nullptr;       // [N, C, L] or [N, L, C]
  void* y = nullptr;             // as x
  const void* weight = nullptr;  // [C], or null: 1
  const void* bias = nullptr;    // [C], or null: 0
  void* mean = nullptr;          // [N, G], written
  void* rstd = nullptr;          // [N, G], written: 1 / sqrt(var + eps)
  void* running_mean = nullptr;  // [C], updated with the mean over N where G = C, or null
  void* running_var = nullptr;   // [C], the same with the unbiased variances (L > 1), or null
  double momentum = 0;           // weight of this batch in the running statistics
  double eps = 0;
};

struct GroupNormBackwardParams {
  DType dtype = DType::kFloat32;
  GroupNormShape shape;
  const void* dy = nullptr;      // as x
  const void* x = nullptr;       // [N, C, L] or [N, L, C]
  const void* weight = nullptr;  // [C], or null: 1
  const void* mean = nullptr;    // [N, G]
  const void* rstd = nullptr;    // [N, G]
  void* dx = nullptr;            // as x, or null
  void* dweight = nullptr;       // [C], or null
  void* dbias = nullptr;         // [C], or null
};

namespace cpu {
void layer_norm_forward(const LayerNormParams&);
void layer_norm_backward(const LayerNormBackwardParams&);
void group_norm_forward(const GroupNormParams&);
void group_norm_backward(const GroupNormBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
