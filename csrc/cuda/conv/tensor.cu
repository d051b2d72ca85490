// Convolution on tensor cores: bfloat16, float16, and float rounded to tf32.
#include "cuda/conv/products.cuh"
#include "cuda/conv/tensor.cuh"
#include "cuda/gemm/tensor.cuh"

namespace fastnn::cuda {
namespace {

template <class T>
using OnTensorCores = ConvProducts<LargeTensorTile<T>, SmallTensorTile<T>>;

template <class F>
void visit_tensor(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kBFloat16: return f(OnTensorCores<BFloat16>{});
    case DType::kFloat16: return f(OnTensorCores<Float16>{});
    default: return f(OnTensorCores<float>{});
  }
}

}  // namespace

void conv_tensor(const ConvForwardParams& p, void* workspace, Stream stream) {
  visit_tensor(p.dtype, [&](auto products) { products.forward(p, workspace, stream); });
}
void conv_tensor(const ConvBackwardDataParams& p, void* workspace, Stream stream) {
  visit_tensor(p.dtype, [&](auto products) { products.backward_data(p, workspace, stream); });
}
void conv_tensor(const ConvBackwardWeightParams& p, void* workspace, Stream stream) {
  visit_tensor(p.dtype, [&](auto products) { products.backward_weight(p, workspace, stream); });
}

}  // namespace fastnn::cuda
