// Inner loops of cross-entropy. Rows: the classes are innermost (inner = 1). Columns: they are strided, and
// the registers run across the inner index.
#pragma once
#include "cpu/capability.h"
#include "fastnn/loss.h"

namespace fastnn::cpu {

struct LossKernels {
  // Rows [begin, end).
  void (*rows)(const CrossEntropyParams&, int64_t begin, int64_t end);
  void (*rows_backward)(const CrossEntropyBackwardParams&, int64_t begin, int64_t end);
  // Columns [begin, end) of batch entry n.
  void (*columns)(const CrossEntropyParams&, int64_t n, int64_t begin, int64_t end);
  void (*columns_backward)(const CrossEntropyBackwardParams&, int64_t n, int64_t begin, int64_t end);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(LossKernels, loss)
