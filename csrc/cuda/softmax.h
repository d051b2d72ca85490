// Launchers of the softmax kernels. They start work on `stream` of the current device and return.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/softmax.h"

namespace fastnn::cuda {

void softmax_forward(const SoftmaxParams&, cudaStream_t stream);
void softmax_backward(const SoftmaxBackwardParams&, cudaStream_t stream);

}  // namespace fastnn::cuda
