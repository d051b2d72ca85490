// Launchers of the linear kernels. They start work on `stream` of the current device and return.
//
// tf32: floats may be rounded to ten bits of fraction, on tensor cores. Workspaces are in bytes.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/linear.h"

namespace fastnn::cuda {

int64_t linear_workspace(const LinearParams&);
void linear_forward(const LinearParams&, bool tf32, void* workspace, cudaStream_t stream);

int64_t linear_backward_workspace(const LinearBackwardParams&);
void linear_backward(const LinearBackwardParams&, bool tf32, void* workspace, cudaStream_t stream);

}  // namespace fastnn::cuda
