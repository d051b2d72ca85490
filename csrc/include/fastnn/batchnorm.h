// Batch normalisation, y = (x - mean) / sqrt(var + eps) * weight + bias, per channel: what the kernels
// need to know. x is [N, C, L] (L = product of the spatial sizes) or, channels last, [N, L, C]; an input
// [N, C] is channels last with L = 1. Parameters and statistics are in the compute type of dtype:
// double for float64, float for every other.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

struct BatchNormShape {
  int64_t N = 0, C = 0, L = 0;
  bool channels_last = false;
};

struct BatchNormParams {
  DType dtype = DType::kFloat32;
  BatchNormShape shape;
  const void* x = nullptr;       // [N, C, L] or [N, L, C]
  void* y = nullptr;             // as x
  const void* weight = nullptr;  // [C], or null: 1
  const void* bias = nullptr;    // [C], or null: 0
  void* running_mean = nullptr;  // [C]; read when not training; updated, unless null, when training
  void* running_var = nullptr;   // [C]; the same
  void* save_mean = nullptr;     // [C], written when training
  void* save_invstd = nullptr;   // [C], written when training
  bool training = false;         // statistics of this batch (N * L > 1), or the running ones
  double momentum = 0;           // weight of this batch in the running statistics
  double eps = 0;
};

struct BatchNormBackwardParams {
  DType dtype = DType::kFloat32;
  BatchNormShape shape;
  const void* dy = nullptr;      // as x
  const void* x = nullptr;       // [N, C, L] or [N, L, C]
  const void* weight = nullptr;  // [C], or null: 1
  const void* mean = nullptr;    // [C]: save_mean, or running_mean when not training
  const void* invstd = nullptr;  // [C]: save_invstd, or null when not training
  const void* var = nullptr;     // [C]: running_var when not training
  void* dx = nullptr;            // as x, or null
  void* dweight = nullptr;       // [C], or null
  void* dbias = nullptr;         // [C], or null
  bool training = false;
  double eps = 0;
};

namespace cpu {
void batchnorm_forward(const BatchNormParams&);
void batchnorm_backward(const BatchNormBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
