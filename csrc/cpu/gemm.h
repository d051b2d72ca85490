// C = A B (+ C) (+ bias): the matrix core under linear and conv. Any strides on A and B, float or double.
#pragma once
#include <cstdint>

namespace fastnn::cpu {

template <class T>
struct GemmParams {
  int64_t m = 0, n = 0, k = 0;
  const T* a = nullptr;  // element (i, p) at a[i * a_row + p * a_col], i < m, p < k
  int64_t a_row = 0, a_col = 0;
  const T* b = nullptr;  // element (p, j) at b[p * b_row + j * b_col], p < k, j < n
  int64_t b_row = 0, b_col = 0;
  T* c = nullptr;  // element (i, j) at c[i * c_row + j]
  int64_t c_row = 0;
  bool accumulate = false;      // C += A B instead of C = A B
  const T* bias_row = nullptr;  // [m], added to every element of row i; not with accumulate
  const T* bias_col = nullptr;  // [n], added to every element of column j; not with accumulate
  const T* packed_a = nullptr;  // [m * k] from gemm_pack_a with the same m and k: read instead of a
};

// On torch's threads. The result does not depend on their number.
void gemm(const GemmParams<float>&);
void gemm(const GemmParams<double>&);

// On the calling thread, for use inside a parallel loop. B with b_col == 1 is read in place while few
// rows of A use it, so a caller that streams panels of B pays for no second copy.
void gemm_serial(const GemmParams<float>&);
void gemm_serial(const GemmParams<double>&);

// Copies A (m, k, a and its strides) into packed [m * k], in the order in which the kernel in use reads
// it: for an A that meets many B, as a convolution's weight does.
void gemm_pack_a(const GemmParams<float>&, float* packed);
void gemm_pack_a(const GemmParams<double>&, double* packed);

}  // namespace fastnn::cpu
