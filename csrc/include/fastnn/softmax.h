// Softmax and its kin over one dimension of a contiguous tensor, seen as [outer, length, inner].
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

struct SoftmaxParams {
  DType dtype = DType::kFloat32;
  int64_t outer = 1, length = 1, inner = 1;
  bool log = false;         // log-softmax
  bool negate = false;      // of -x (softmin)
  const void* x = nullptr;  // [outer, length, inner]
  void* y = nullptr;        // [outer, length, inner]
};

struct SoftmaxBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t outer = 1, length = 1, inner = 1;
  bool log = false, negate = false;
  const void* dy = nullptr;  // [outer, length, inner]
  const void* y = nullptr;   // [outer, length, inner]: what the forward wrote
  void* dx = nullptr;        // [outer, length, inner], may be dy
};

namespace cpu {
void softmax_forward(const SoftmaxParams&);
void softmax_backward(const SoftmaxBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
