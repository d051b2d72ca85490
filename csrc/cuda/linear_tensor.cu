// Linear on tensor cores: bfloat16, float16, and float rounded to tf32.
#include "cuda/gemm/tensor.cuh"
#include "cuda/linear.cuh"

namespace fastnn::cuda {
void linear_forward_tensor(const LinearParams& p, void* workspace, Stream stream) {
  visit_tensor<LinearProducts>(p.dtype, [&](auto products) { products.forward(p, workspace, stream); });
}
void linear_backward_tensor(const LinearBackwardParams& p, void* workspace, Stream stream) {
  visit_tensor<LinearProducts>(p.dtype, [&](auto products) { products.backward(p, workspace, stream); });
}

}  // namespace fastnn::cuda
