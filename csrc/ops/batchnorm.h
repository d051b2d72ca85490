// What the CPU and CUDA ops of batch norm share. No Python here: libfastnn_cuda.so is built from this header
// too.
#pragma once
#include "fastnn/batchnorm.h"
#include "ops/vectors.h"

namespace fastnn::ops {

inline BatchNormShape shape_of(const Tensor& x, at::MemoryFormat format) {
  const int64_t N = x.size(0), C = x.size(1), L = N * C == 0 ? 0 : x.numel() / (N * C);
  // One element per channel: both layouts are the same in memory, and columns are the vectors.
  return {.N = N, .C = C, .L = L, .channels_last = L == 1 || format != at::MemoryFormat::Contiguous};
}

}  // namespace fastnn::ops
