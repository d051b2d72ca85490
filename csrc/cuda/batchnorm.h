// Launchers of the batch norm kernels. They start work on `stream` of the current device and return.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/batchnorm.h"

namespace fastnn::cuda {

int64_t batchnorm_workspace(const BatchNormShape&);  // in numbers of the compute type, for either direction

void batchnorm_forward(const BatchNormParams&, void* workspace, cudaStream_t stream);
void batchnorm_backward(const BatchNormBackwardParams&, void* workspace, cudaStream_t stream);

}  // namespace fastnn::cuda
