// Linear's three products by the main loop of gemm/product.cuh.
#pragma once
#include "cuda/gemm/product.cuh"
#include "fastnn/linear.h"

namespace fastnn::cuda {

// y = x w^T sums along the rows of both in memory, dx = dy w along those of dy, dw = dy^T x along none.
template <class Large, class Small>
struct LinearProducts {
  using T = typename Large::T;
  template <bool kAlongDepth>
  using Source = MatrixSource<T, kAlongDepth, /*kPacked=*/false>;

  static void forward(const LinearParams& p, void* workspace, Stream stream) {
    const auto [N, C, K] = p.shape;
    run(p.dtype, source<true>(p.x, N, C), source<true>(p.w, K, C), static_cast<T*>(p.y),
        static_cast<const T*>(p.bias), workspace, stream);
  }
  static void backward(const LinearBackwardParams& p, void* workspace, Stream stream) {
    const auto [N, C, K] = p.shape;
    if (p.dx != nullptr) {
      run(p.dtype, source<true>(p.dy, N, K), source<false>(transposed(p.w), C, K), static_cast<T*>(p.dx),
          nullptr, workspace, stream);
    }
    if (p.dw != nullptr) {
      run(p.dtype, source<false>(transposed(p.dy), K, N), source<false>(transposed(p.x), C, N),
          static_cast<T*>(p.dw), nullptr, workspace, stream);
    }
  }

 private:
  static LinearMatrix transposed(const LinearMatrix& m) { return {m.data, m.col, m.row}; }
  template <bool kAlongDepth>
  static Source<kAlongDepth> source(const LinearMatrix& m, int64_t rows, int64_t depth) {
    return {static_cast<const T*>(m.data), m.row, m.col, rows, depth};
  }
  template <class A, class B>
  static void run(DType dtype, const A& a, const B& b, T* y, const T* bias, void* workspace, Stream stream) {
    if (a.rows == 0 || b.rows == 0) return;
    const ProductSize size = {a.rows, b.rows, a.depth};
    const MatrixOut<T> out(y, bias, b.rows, b.rows);
    if (a.is_packed() && b.is_packed()) {
      planned_product<Large, Small>(dtype, size, a.packed(), b.packed(), out, workspace, stream);
    } else {
      planned_product<Large, Small>(dtype, size, a, b, out, workspace, stream);
    }
  }
};

void linear_forward_tensor(const LinearParams&, void* workspace, Stream);
void linear_backward_tensor(const LinearBackwardParams&, void* workspace, Stream);

// A few rows of x are a matter of reading w once: linear_rows.cu.
bool takes_few_rows(const LinearParams&);
void linear_few_rows(const LinearParams&, Stream);

}  // namespace fastnn::cuda
