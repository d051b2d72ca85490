// Linear on tensor cores: bfloat16, float16, and float rounded to tf32.
#include "cuda/gemm/tensor.cuh"
#include "cuda/linear.cuh"

namespace fastnn::cuda {
namespace {

template <class T>
using OnTensorCores = LinearProducts<LargeTensorTile<T>, SmallTensorTile<T>>;

template <class F>
void visit_tensor(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kBFloat16: return f(OnTensorCores<BFloat16>{});
    case DType::kFloat16: return f(OnTensorCores<Float16>{});
    default: return f(OnTensorCores<float>{});
  }
}

}  // namespace

void linear_forward_tensor(const LinearParams& p, void* workspace, Stream stream) {
  visit_tensor(p.dtype, [&](auto products) { products.forward(p, workspace, stream); });
}
void linear_backward_tensor(const LinearBackwardParams& p, void* workspace, Stream stream) {
  visit_tensor(p.dtype, [&](auto products) { products.backward(p, workspace, stream); });
}

}  // namespace fastnn::cuda
