// Element-wise activations, y[i] = f(x[i]): what the kernels need to know. Formulas: activation_table.h.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

struct ActivationParams {
  int kind = 0;  // position in FASTNN_ACTIVATIONS
  DType dtype = DType::kFloat32;
  int64_t n = 0;            // number of elements
  const void* x = nullptr;  // [n]
  void* y = nullptr;        // [n], may be x
  double a = 0, b = 0;      // the activation's parameters, e.g. negative_slope
};

struct ActivationBackwardParams {
  int kind = 0;
  DType dtype = DType::kFloat32;
  int64_t n = 0;
  const void* dy = nullptr;     // [n]
  const void* saved = nullptr;  // [n]: x or y, as the table says
  void* dx = nullptr;           // [n], may be dy
  double a = 0, b = 0;
};

namespace cpu {
void activation_forward(const ActivationParams&);
void activation_backward(const ActivationBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
