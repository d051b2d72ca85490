// Losses of one element x and its target t each: squared error, and binary cross-entropy of logits.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

enum class PointwiseLoss : int { kSquared, kBinaryLogits };

// Factors that repeat: that of element i is data[i / inner % length].
struct ElementWeights {
  const void* data = nullptr;  // [length] of dtype, or null: ones
  int64_t length = 1, inner = 1;
};

// loss = w f(x, t); of binary logits the part of positive targets counts p times:
// f = (1 - t) x + (1 + (p - 1) t) log(1 + exp(-x)).
struct PointwiseLossParams {
  DType dtype = DType::kFloat32;
  PointwiseLoss kind = PointwiseLoss::kSquared;
  int64_t count = 0;
  const void* x = nullptr;                 // [count]
  const void* target = nullptr;            // [count]
  void* y = nullptr;                       // [count], or null: only the sum is wanted
  ElementWeights weight, positive_weight;  // w and p; the CPU's kernels only
};

struct PointwiseLossBackwardParams {
  DType dtype = DType::kFloat32;
  PointwiseLoss kind = PointwiseLoss::kSquared;
  int64_t count = 0;
  const void* dy = nullptr;  // [count], or null: `slope` is that of every element
  double slope = 1;
  const void* number = nullptr;  // CUDA: [1] on the device, of dtype: slope is multiplied by it
  const void* x = nullptr;       // [count]
  const void* target = nullptr;  // [count]
  void* dx = nullptr;            // [count]
  ElementWeights weight, positive_weight;
};

namespace cpu {
// The sum of the losses where y is null, else 0.
double pointwise_loss_forward(const PointwiseLossParams&);
void pointwise_loss_backward(const PointwiseLossBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
