// Convolution on tensor cores.
#pragma once
#include "cuda/device.cuh"
#include "fastnn/conv.h"

namespace fastnn::cuda {

void conv_tensor(const ConvForwardParams&, void* workspace, Stream);
void conv_tensor(const ConvBackwardDataParams&, void* workspace, Stream);
void conv_tensor(const ConvBackwardWeightParams&, void* workspace, Stream);

}  // namespace fastnn::cuda
