// Launchers of the convolution kernels. They start work on `stream` of the current device and return.
//
// tf32: floats may be rounded to ten bits of fraction, on tensor cores. Workspaces are in bytes.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/conv.h"

namespace fastnn::cuda {

// Each returns the name of the algorithm. Sizes of zero are the caller's business.
int64_t conv_workspace(const ConvForwardParams&);
const char* conv_forward(const ConvForwardParams&, bool tf32, void* workspace, cudaStream_t stream);

int64_t conv_workspace(const ConvBackwardDataParams&);
const char* conv_backward_data(const ConvBackwardDataParams&, bool tf32, void* workspace,
                               cudaStream_t stream);

int64_t conv_workspace(const ConvBackwardWeightParams&);
const char* conv_backward_weight(const ConvBackwardWeightParams&, bool tf32, void* workspace,
                                 cudaStream_t stream);

int64_t conv_workspace(const ConvBackwardBiasParams&);
void conv_backward_bias(const ConvBackwardBiasParams&, void* workspace, cudaStream_t stream);

}  // namespace fastnn::cuda
