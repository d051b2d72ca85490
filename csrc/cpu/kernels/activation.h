// Inner loops of the element-wise activations, [begin, end) of the flattened tensors.
#pragma once
#include "cpu/capability.h"
#include "fastnn/activation.h"

namespace fastnn::cpu {

struct ActivationKernels {
  void (*forward)(const ActivationParams&, int64_t begin, int64_t end);
  void (*backward)(const ActivationBackwardParams&, int64_t begin, int64_t end);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(ActivationKernels, activation)
