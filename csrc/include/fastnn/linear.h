// Linear: y = x w^T + b over N rows, C features in, K features out. float or double.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

struct LinearShape {
  int64_t N = 0, C = 0, K = 0;
};

// A matrix with any strides, also 0; in elements.
struct LinearMatrix {
  const void* data = nullptr;
  int64_t row = 0, col = 0;
};

struct LinearParams {
  DType dtype = DType::kFloat32;
  LinearShape shape;
  LinearMatrix x;              // [N, C]
  LinearMatrix w;              // [K, C]
  const void* bias = nullptr;  // [K] or null
  void* y = nullptr;           // [N, K], contiguous
};

// Null outputs are not computed: dx reads w, dw reads x.
struct LinearBackwardParams {
  DType dtype = DType::kFloat32;
  LinearShape shape;
  LinearMatrix dy;     // [N, K]
  LinearMatrix x;      // [N, C], read for dw
  LinearMatrix w;      // [K, C], read for dx
  void* dx = nullptr;  // [N, C], contiguous, or null
  void* dw = nullptr;  // [K, C], contiguous, or null
  void* db = nullptr;  // [K] or null
};

namespace cpu {
void linear_forward(const LinearParams&);
void linear_backward(const LinearBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
