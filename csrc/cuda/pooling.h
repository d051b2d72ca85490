// Launchers of the pooling kernels. They start work on `stream` of the current device and return.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/pooling.h"

namespace fastnn::cuda {

void max_pool_forward(const MaxPoolParams&, cudaStream_t stream);
void max_pool_backward(const MaxPoolBackwardParams&, cudaStream_t stream);
void max_pool_indices(const MaxPoolIndicesParams&, cudaStream_t stream);
void avg_pool_forward(const AvgPoolParams&, cudaStream_t stream);
void avg_pool_backward(const AvgPoolBackwardParams&, cudaStream_t stream);

}  // namespace fastnn::cuda
