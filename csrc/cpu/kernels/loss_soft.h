// Inner loops of cross-entropy with a distribution as target; rows and columns as in kernels/loss.h.
#pragma once
#include "cpu/capability.h"
#include "fastnn/loss_soft.h"

namespace fastnn::cpu {

struct LossSoftKernels {
  // Rows [begin, end).
  void (*rows)(const SoftCrossEntropyParams&, int64_t begin, int64_t end);
  void (*rows_backward)(const SoftCrossEntropyBackwardParams&, int64_t begin, int64_t end);
  // Columns [begin, end) of batch entry n.
  void (*columns)(const SoftCrossEntropyParams&, int64_t n, int64_t begin, int64_t end);
  void (*columns_backward)(const SoftCrossEntropyBackwardParams&, int64_t n, int64_t begin, int64_t end);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(LossSoftKernels, loss_soft)
