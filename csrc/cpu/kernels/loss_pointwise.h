// Inner loops of the losses of single elements.
#pragma once
#include "cpu/capability.h"
#include "fastnn/loss_pointwise.h"

namespace fastnn::cpu {

struct PointwiseLossKernels {
  // Elements [begin, end): the losses, or their sum.
  void (*values)(const PointwiseLossParams&, int64_t begin, int64_t end);
  double (*sum)(const PointwiseLossParams&, int64_t begin, int64_t end);
  void (*backward)(const PointwiseLossBackwardParams&, int64_t begin, int64_t end);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(PointwiseLossKernels, loss_pointwise)
