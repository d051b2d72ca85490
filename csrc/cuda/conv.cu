// Convolution: the choice of kernels, the gradient of the bias, and products by multiply-adds.
#include "cuda/bias.cuh"
#include "cuda/conv.h"
#include "cuda/conv/depthwise.cuh"
#include "cuda/conv/products.cuh"
#include "cuda/conv/tensor.cuh"
#include "cuda/gemm/simt.cuh"

namespace fastnn::cuda {
namespace {

constexpr const char *kDepthwise = "depthwise", *kTensor = "implicit GEMM, tensor cores",
                     *kSimt = "implicit GEMM";

}  // namespace

int64_t conv_workspace(const ConvForwardParams& p) {
  return is_depthwise(p) ? 0 : product_workspace(p.dtype, forward_size(p));
}
const char* conv_forward(const ConvForwardParams& p, bool tf32, void* workspace, Stream stream) {
  if (is_depthwise(p)) return depthwise_forward(p, stream), kDepthwise;
  if (takes_tensor_cores(p.dtype, tf32)) return conv_tensor(p, workspace, stream), kTensor;
  visit_simt<ConvProducts>(p.dtype, [&](auto products) { products.forward(p, workspace, stream); });
  return kSimt;
}

int64_t conv_workspace(const ConvBackwardDataParams& p) {
  return is_depthwise(p) ? 0 : product_workspace(p.dtype, backward_data_size(p));
}
const char* conv_backward_data(const ConvBackwardDataParams& p, bool tf32, void* workspace, Stream stream) {
  if (is_depthwise(p)) return depthwise_backward_data(p, stream), kDepthwise;
  if (takes_tensor_cores(p.dtype, tf32)) return conv_tensor(p, workspace, stream), kTensor;
  visit_simt<ConvProducts>(p.dtype, [&](auto products) { products.backward_data(p, workspace, stream); });
  return kSimt;
}

int64_t conv_workspace(const ConvBackwardWeightParams& p) {
  return is_depthwise(p) ? depthwise_workspace(p) : product_workspace(p.dtype, backward_weight_size(p));
}
const char* conv_backward_weight(const ConvBackwardWeightParams& p, bool tf32, void* workspace,
                                 Stream stream) {
  if (is_depthwise(p)) return depthwise_backward_weight(p, workspace, stream), kDepthwise;
  if (takes_tensor_cores(p.dtype, tf32)) return conv_tensor(p, workspace, stream), kTensor;
  visit_simt<ConvProducts>(p.dtype, [&](auto products) { products.backward_weight(p, workspace, stream); });
  return kSimt;
}

int64_t conv_workspace(const ConvBackwardBiasParams& p) {
  return bias_workspace(p.n, p.channels, p.plane, p.channels_last);
}
void conv_backward_bias(const ConvBackwardBiasParams& p, void* workspace, Stream stream) {
  bias_backward(p.dtype, p.dy, p.n, p.channels, p.plane, p.channels_last, p.db, workspace, stream);
}

}  // namespace fastnn::cuda
