// Activations: what the kernels need to know. Formulas of the element-wise ones: activation_table.h.
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
  const void* dy = nullptr;     // [n], or [1] with dy_broadcast
  bool dy_broadcast = false;    // one number for all: the gradient of a sum
  const void* saved = nullptr;  // [n]: x or y, as the table says
  void* dx = nullptr;           // [n], may be dy
  double a = 0, b = 0;
};

// y = x > 0 ? x : w x, with one weight per channel; a single weight is channels = 1.
struct PreluParams {
  DType dtype = DType::kFloat32;
  int64_t outer = 1, channels = 1, inner = 1;  // channels_last: inner = 1
  const void* x = nullptr;                     // [outer, channels, inner]
  const void* w = nullptr;                     // [channels]
  void* y = nullptr;                           // [outer, channels, inner], may be x
};

struct PreluBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t outer = 1, channels = 1, inner = 1;
  const void* dy = nullptr;  // [outer, channels, inner]
  const void* x = nullptr;   // [outer, channels, inner]
  const void* w = nullptr;   // [channels]
  void* dx = nullptr;        // [outer, channels, inner], may be dy
  void* dw = nullptr;        // [channels]; null: not wanted
};

// y = first half of x times sigmoid(second half).
struct GluParams {
  DType dtype = DType::kFloat32;
  int64_t outer = 1, half = 1;  // half: elements of one half of the split dimension and all inner ones
  const void* x = nullptr;      // [outer, 2, half]
  void* y = nullptr;            // [outer, half]
};

struct GluBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t outer = 1, half = 1;
  const void* dy = nullptr;  // [outer, half]
  const void* x = nullptr;   // [outer, 2, half]
  void* dx = nullptr;        // [outer, 2, half]
};

// RReLU in training, y = x <= 0 ? r x : x with r = lower + u (upper - lower), u in [0, 1) from word i of the
// stream (seed, offset), philox.h. The same serves backward, which draws r again: dy in the place of x.
struct RreluParams {
  DType dtype = DType::kFloat32;
  int64_t n = 0;
  const void* x = nullptr;     // [n]: x; backward: dy
  const void* sign = nullptr;  // [n], r applies where it is <= 0: x; backward also: y, if lower > 0
  void* y = nullptr;           // [n], may be x; backward: dx, may be dy
  double lower = 0, upper = 0;
  uint64_t seed = 0, offset = 0;
  const uint64_t* stream = nullptr;  // CUDA: [2] on the device, seed and offset, instead of those above
};

namespace cpu {
void activation_forward(const ActivationParams&);
void activation_backward(const ActivationBackwardParams&);
void prelu_forward(const PreluParams&);
void prelu_backward(const PreluBackwardParams&);
void glu_forward(const GluParams&);
void glu_backward(const GluBackwardParams&);
void rrelu(const RreluParams&);
}  // namespace cpu

}  // namespace fastnn
