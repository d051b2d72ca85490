// Convolution in one to three spatial dimensions: what the kernels need to know.
//
//   y[n, k, o] = b[k] + sum over c in the group of k, r of  w[k, c, r] * x[n, c, o * stride + r * dilation -
//   padding]
//
// Spatial arrays are (D, H, W); lower ranks are padded with leading ones. Tensors are contiguous; with
// `channels_last` all of them, the weight too, have their second dimension moved to the end. A transposed
// convolution is the backward-data direction of the convolution whose weight has the same shape:
// its input takes the place of dy, its output that of dx, and its output_padding only shows in `in`.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

struct ConvGeometry {
  DType dtype = DType::kFloat32;  // float32 or float64
  int64_t n = 0, c = 0, k = 0, g = 1;
  int64_t in[3] = {1, 1, 1};
  int64_t kernel[3] = {1, 1, 1};
  int64_t stride[3] = {1, 1, 1};
  int64_t padding[3] = {0, 0, 0};
  int64_t dilation[3] = {1, 1, 1};
  int64_t out[3] = {1, 1, 1};
  bool channels_last = false;  // [n, in..., c], [k, kernel..., c / g], [n, out..., k]
};

struct ConvForwardParams : ConvGeometry {
  const void* x = nullptr;  // [n, c, in...]
  const void* w = nullptr;  // [k, c / g, kernel...]
  const void* b = nullptr;  // [k] or null
  void* y = nullptr;        // [n, k, out...]
};

struct ConvBackwardDataParams : ConvGeometry {
  const void* dy = nullptr;  // [n, k, out...]
  const void* w = nullptr;   // [k, c / g, kernel...]
  const void* b = nullptr;   // [c] or null: added to dx (the bias of a transposed convolution)
  void* dx = nullptr;        // [n, c, in...]
};

struct ConvBackwardWeightParams : ConvGeometry {
  const void* dy = nullptr;  // [n, k, out...]
  const void* x = nullptr;   // [n, c, in...]
  void* dw = nullptr;        // [k, c / g, kernel...]
};

struct ConvBackwardBiasParams {
  DType dtype = DType::kFloat32;
  int64_t n = 0, channels = 0, plane = 0;
  const void* dy = nullptr;    // [n, channels, plane]
  void* db = nullptr;          // [channels]
  bool channels_last = false;  // dy: [n, plane, channels]
};

namespace cpu {
// Each returns the name of the algorithm that ran. Sizes of zero are the caller's business.
const char* conv_forward(const ConvForwardParams&);
const char* conv_backward_data(const ConvBackwardDataParams&);
const char* conv_backward_weight(const ConvBackwardWeightParams&);
void conv_backward_bias(const ConvBackwardBiasParams&);
}  // namespace cpu

}  // namespace fastnn
