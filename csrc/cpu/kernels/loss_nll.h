// Negative log-likelihood: one number of each position is read, and one written among zeros.
#pragma once
#include "cpu/capability.h"
#include "fastnn/loss_nll.h"

namespace fastnn::cpu {

struct LossNllKernels {
  void (*losses)(const NllParams&, int64_t begin, int64_t end);  // positions [begin, end)
  // Columns [begin, end) of batch entry n.
  void (*gradient)(const NllBackwardParams&, int64_t n, int64_t begin, int64_t end);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(LossNllKernels, loss_nll)
