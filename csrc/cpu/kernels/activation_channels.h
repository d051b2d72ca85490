// Inner loops of the activations that are more than element-wise: PReLU (a weight per channel) and GLU (two
// halves).
#pragma once
#include "cpu/capability.h"
#include "fastnn/activation.h"

namespace fastnn::cpu {

struct ActivationChannelsKernels {
  // PReLU, elements [begin, end) of row (outer, channel) number `row`: one weight.
  void (*prelu_row)(const PreluParams&, int64_t row, int64_t begin, int64_t end);
  double (*prelu_row_backward)(const PreluBackwardParams&, int64_t row, int64_t begin,
                               int64_t end);  // its dw
  // PReLU with inner = 1, outer indices [begin, end): the weights run along the row.
  void (*prelu_channels)(const PreluParams&, int64_t begin, int64_t end);
  void (*prelu_channels_backward)(const PreluBackwardParams&, int64_t begin, int64_t end,
                                  double* dw);  // [channels]
  void (*prelu_store_dw)(const PreluBackwardParams&, const double* dw);
  // GLU, elements [begin, end) of the halves of outer index o.
  void (*glu)(const GluParams&, int64_t o, int64_t begin, int64_t end);
  void (*glu_backward)(const GluBackwardParams&, int64_t o, int64_t begin, int64_t end);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(ActivationChannelsKernels, activation_channels)
