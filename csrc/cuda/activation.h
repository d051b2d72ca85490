// Launchers of the activation kernels. They start work on `stream` of the current device and return.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/activation.h"

namespace fastnn::cuda {

void activation_forward(const ActivationParams&, cudaStream_t stream);
void activation_backward(const ActivationBackwardParams&, cudaStream_t stream);

}  // namespace fastnn::cuda
