// Launchers of the layer, RMS and group norm kernels. They start work on `stream` of the current device and
// return.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/normalization.h"

namespace fastnn::cuda {

void layer_norm_forward(const LayerNormParams&, cudaStream_t stream);

// workspace: layer_norm_workspace() numbers of the compute type; null where neither dweight nor dbias is
// wanted.
int64_t layer_norm_workspace(const LayerNormBackwardParams&);
void layer_norm_backward(const LayerNormBackwardParams&, void* workspace, cudaStream_t stream);

int64_t group_norm_workspace(const GroupNormShape&);  // in numbers of the compute type, for either direction
void group_norm_forward(const GroupNormParams&, void* workspace, cudaStream_t stream);
void group_norm_backward(const GroupNormBackwardParams&, void* workspace, cudaStream_t stream);

}  // namespace fastnn::cuda
