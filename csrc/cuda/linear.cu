// Linear, y = x w^T + b: the choice of kernels, the gradient of the bias, and products by multiply-adds.
#include "cuda/bias.cuh"
#include "cuda/gemm/simt.cuh"
#include "cuda/linear.cuh"
#include "cuda/linear.h"

namespace fastnn::cuda {
namespace {

int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

}  // namespace

int64_t linear_workspace(const LinearParams& p) {
  return takes_few_rows(p) ? 0 : product_workspace(p.dtype, {p.shape.N, p.shape.K, p.shape.C});
}

void linear_forward(const LinearParams& p, bool tf32, void* workspace, Stream stream) {
  if (p.shape.N == 0 || p.shape.K == 0) return;
  if (takes_few_rows(p)) return linear_few_rows(p, stream);
  if (takes_tensor_cores(p.dtype, tf32)) return linear_forward_tensor(p, workspace, stream);
  visit_simt<LinearProducts>(p.dtype, [&](auto products) { products.forward(p, workspace, stream); });
}

int64_t linear_backward_workspace(const LinearBackwardParams& p) {
  const auto [N, C, K] = p.shape;
  int64_t bytes = p.db == nullptr ? 0 : bias_workspace(N, K, 1, /*last=*/true);
  if (p.dx != nullptr) bytes = larger(bytes, product_workspace(p.dtype, {N, C, K}));
  if (p.dw != nullptr) bytes = larger(bytes, product_workspace(p.dtype, {K, C, N}));
  return bytes;
}

void linear_backward(const LinearBackwardParams& p, bool tf32, void* workspace, Stream stream) {
  if (takes_tensor_cores(p.dtype, tf32)) {
    linear_backward_tensor(p, workspace, stream);
  } else {
    visit_simt<LinearProducts>(p.dtype, [&](auto products) { products.backward(p, workspace, stream); });
  }
  if (p.db != nullptr) {
    bias_backward(p.dtype, p.dy.data, p.shape.N, p.shape.K, 1, /*last=*/true, p.db, workspace, stream);
  }
}

}  // namespace fastnn::cuda
