// Convolution on tensor cores: bfloat16, float16, and float rounded to tf32.
#include "cuda/conv/products.cuh"
#include "cuda/conv/tensor.cuh"
#include "cuda/gemm/tensor.cuh"

namespace fastnn::cuda {
void conv_tensor(const ConvForwardParams& p, void* workspace, Stream stream) {
  visit_tensor<ConvProducts>(p.dtype, [&](auto products) { products.forward(p, workspace, stream); });
}
void conv_tensor(const ConvBackwardDataParams& p, void* workspace, Stream stream) {
  visit_tensor<ConvProducts>(p.dtype, [&](auto products) { products.backward_data(p, workspace, stream); });
}
void conv_tensor(const ConvBackwardWeightParams& p, void* workspace, Stream stream) {
  visit_tensor<ConvProducts>(p.dtype, [&](auto products) { products.backward_weight(p, workspace, stream); });
}

}  // namespace fastnn::cuda
