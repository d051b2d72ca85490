// Cross-entropy of logits and class indices. The logits, contiguous, are seen as [N, C, inner]; a *position*
// is one (n, j), and has a target, a loss and, in the mean, a weight.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

struct ClassTargets {
  const int64_t* index = nullptr;      // [N, inner]
  const void* class_weight = nullptr;  // [C] of the compute type, or null: ones
  int64_t ignored = -100;              // positions of this class count for nothing
};

struct CrossEntropyParams {
  DType dtype = DType::kFloat32;
  int64_t N = 1, C = 1, inner = 1;
  ClassTargets target;
  const void* x = nullptr;  // [N, C, inner]
  void* peak = nullptr;     // [N, inner] of the compute type: the largest logit
  void* sum = nullptr;      // [N, inner] of the compute type: sum of exp(x - peak)
  void* loss = nullptr;     // [N, inner] of the compute type
};

struct CrossEntropyBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t N = 1, C = 1, inner = 1;
  ClassTargets target;
  const void* dy = nullptr;  // [N, inner] of the compute type, or one number
  bool dy_is_number = false;
  double scale = 1;                    // of dy: 1 / normaliser in a mean
  const double* normaliser = nullptr;  // CUDA: [1] on the device: divides dy, in the place of scale
  const void* x = nullptr;             // [N, C, inner]
  const void* peak = nullptr;          // [N, inner] of the compute type
  const void* sum = nullptr;           // [N, inner] of the compute type
  void* dx = nullptr;                  // [N, C, inner]
};

namespace cpu {
// The first target that is neither a class nor ignored, or null. Those of the functions below have passed it.
const int64_t* first_bad_target(const ClassTargets&, int64_t positions, int64_t classes);
// Sums in double, split by fixed sizes.
double sum_of_losses(DType, const void* loss, int64_t positions);
double sum_of_weights(DType, const ClassTargets&, int64_t positions);

void cross_entropy_forward(const CrossEntropyParams&);
void cross_entropy_backward(const CrossEntropyBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
