// Dropout, y = keep ? x * scale + kept : x * 0 + dropped: what the kernels need to know. Plain dropout has
// kept = dropped = 0, alpha dropout moves the dropped elements to the value that keeps mean and variance.
//
// Index i is dropped when decision i of the stream (seed, offset), philox.h, with threshold p * 2^32 says so.
// Backward, which is dx = keep ? dy * scale : dy * 0, decides again instead of keeping the mask.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

struct DropoutParams {
  DType dtype = DType::kFloat32;
  int64_t decisions = 0;    // how many, each for `length` adjacent elements
  int64_t length = 1;       // 1, or the size of a feature map
  const void* x = nullptr;  // [decisions, length]
  void* y = nullptr;        // [decisions, length], may be x
  double p = 0;             // probability of being dropped, 0 <= p < 1
  double scale = 1, kept = 0, dropped = 0;
  uint64_t seed = 0, offset = 0;
  const uint64_t* stream = nullptr;  // CUDA: [2] on the device, seed and offset, instead of those above
};

// Of relu and plain dropout in a row, y = keep ? max(0, x) * scale : max(0, x) * 0. Decisions as above, one
// for each element. y > 0 says all that backward asks: dx = y > 0 ? dy * scale : 0.
struct ReluDropoutParams {
  DType dtype = DType::kFloat32;
  int64_t count = 0;
  const void* x = nullptr;  // [count]
  void* y = nullptr;        // [count], may be x
  double p = 0;
  uint64_t seed = 0, offset = 0;
};
struct ReluDropoutBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t count = 0;
  const void* dy = nullptr;  // [count]
  const void* y = nullptr;   // [count]
  void* dx = nullptr;        // [count], may be dy
  double scale = 1;
};

// The threshold of fastnn/philox.h: p * 2^32 to the nearest.
inline uint32_t dropout_threshold(double p) {
  const double threshold = p * 4294967296.0 + 0.5;
  return threshold < 4294967295.0 ? static_cast<uint32_t>(threshold) : 4294967295u;
}

namespace cpu {
void dropout(const DropoutParams&);
void relu_dropout(const ReluDropoutParams&);
void relu_dropout_backward(const ReluDropoutBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
