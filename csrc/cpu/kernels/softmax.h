// Inner loops of softmax. Rows: the dimension is innermost (inner = 1). Columns: it is strided, and the
// registers run across the inner index.
#pragma once
#include "cpu/capability.h"
#include "fastnn/softmax.h"

namespace fastnn::cpu {

constexpr int kSoftmaxColumns = 64;  // columns of one strip at most: four registers of the widest kind

struct SoftmaxKernels {
  // Rows [begin, end). scratch: [length] of the compute type.
  void (*rows)(const SoftmaxParams&, int64_t begin, int64_t end, void* scratch);
  void (*rows_backward)(const SoftmaxBackwardParams&, int64_t begin, int64_t end);
  // Columns [begin, end) of outer index o, at most kSoftmaxColumns. scratch: [length, kSoftmaxColumns].
  void (*columns)(const SoftmaxParams&, int64_t o, int64_t begin, int64_t end, void* scratch);
  void (*columns_backward)(const SoftmaxBackwardParams&, int64_t o, int64_t begin, int64_t end);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(SoftmaxKernels, softmax)
