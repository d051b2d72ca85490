// Table of activation kernels: one entry per instruction set.
#pragma once
#include "cpu/capability.h"
#include "fastnn/activation.h"

namespace fastnn::cpu {

// Elements [begin, end) of the whole.
struct ActivationKernels {
  void (*forward)(const ActivationParams&, int64_t begin, int64_t end);
  void (*backward)(const ActivationBackwardParams&, int64_t begin, int64_t end);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(ActivationKernels, activation)
