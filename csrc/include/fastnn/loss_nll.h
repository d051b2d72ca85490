// Negative log-likelihood: loss = -w_t x_t of log-probabilities x and the class t. Positions as in
// fastnn/loss.h.
#pragma once
#include "fastnn/loss.h"

namespace fastnn {

struct NllParams {
  DType dtype = DType::kFloat32;
  int64_t N = 1, C = 1, inner = 1;
  ClassTargets target;
  const void* x = nullptr;  // [N, C, inner]
  void* loss = nullptr;     // [N, inner] of the compute type
};

struct NllBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t N = 1, C = 1, inner = 1;
  ClassTargets target;
  const void* dy = nullptr;  // [N, inner] of the compute type, or one number
  bool dy_is_number = false;
  double scale = 1;    // of dy: 1 / normaliser in a mean
  void* dx = nullptr;  // [N, C, inner]
};

namespace cpu {
void nll_forward(const NllParams&);
void nll_backward(const NllBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
