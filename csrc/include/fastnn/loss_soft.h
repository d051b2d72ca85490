// Cross-entropy of logits and a distribution q over the classes: loss = sum_c q_c (log sum_k exp(x_k) - x_c).
// Positions as in fastnn/loss.h. With class weights w and smoothing s the distribution of a position is
//   class t:          q_c = (1 - s) w_t [c = t] + s / C w_c
//   probabilities p:  q_c = w_c ((1 - s) p_c + s / C)
#pragma once
#include "fastnn/loss.h"

namespace fastnn {

struct SoftTargets {
  ClassTargets hard;                  // its index is null where there are probabilities
  const void* probability = nullptr;  // [N, C, inner] of dtype, or null
  double smoothing = 0;
  double weight_sum = 0;  // of the class weights, C without them
};

struct SoftCrossEntropyParams {
  DType dtype = DType::kFloat32;
  int64_t N = 1, C = 1, inner = 1;
  SoftTargets target;
  const void* x = nullptr;  // [N, C, inner]
  void* peak = nullptr;     // [N, inner] of the compute type: the largest logit
  void* sum = nullptr;      // [N, inner] of the compute type: sum of exp(x - peak)
  void* mass = nullptr;     // [N, inner] of the compute type: sum of q; only with probabilities
  void* loss = nullptr;     // [N, inner] of the compute type
};

struct SoftCrossEntropyBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t N = 1, C = 1, inner = 1;
  SoftTargets target;
  const void* dy = nullptr;  // [N, inner] of the compute type, or one number
  bool dy_is_number = false;
  double scale = 1;            // of dy: 1 / normaliser in a mean
  const void* x = nullptr;     // [N, C, inner]
  const void* peak = nullptr;  // [N, inner] of the compute type
  const void* sum = nullptr;   // [N, inner] of the compute type
  const void* mass = nullptr;  // [N, inner] of the compute type; only with probabilities
  void* dx = nullptr;          // [N, C, inner]
};

namespace cpu {
void soft_cross_entropy_forward(const SoftCrossEntropyParams&);
void soft_cross_entropy_backward(const SoftCrossEntropyBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
