// The inner loop of RReLU in training.
#pragma once
#include "cpu/capability.h"
#include "fastnn/activation.h"

namespace fastnn::cpu {

struct ActivationRandomKernels {
  // Indices [first, last); `first` is a multiple of kPhiloxBatch.
  void (*rrelu)(const RreluParams&, int64_t first, int64_t last);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(ActivationRandomKernels, activation_random)
