// Convolution with one input channel to a group.
#pragma once
#include "cuda/device.cuh"
#include "fastnn/conv.h"

namespace fastnn::cuda {

inline bool is_depthwise(const ConvGeometry& g) {
  return g.g > 1 && g.c == g.g;
}
void depthwise_forward(const ConvForwardParams&, Stream);
void depthwise_backward_data(const ConvBackwardDataParams&, Stream);
int64_t depthwise_workspace(const ConvBackwardWeightParams&);  // in bytes
void depthwise_backward_weight(const ConvBackwardWeightParams&, void* workspace, Stream);

}  // namespace fastnn::cuda
