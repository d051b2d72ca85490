// Linear as matrix products: y = x w^T + b, dx = dy w, dw = dy^T x; db is a column sum. All transposes are
// strides.
#include "fastnn/linear.h"

#include "cpu/gemm.h"
#include "cpu/kernels/linear.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

// Rows that are summed at a time; fixed, so that the sums do not depend on the number of threads.
constexpr int64_t kSumRows = 1024;

// c[m, n] = a b, with b and c as they are stored.
template <class T>
GemmParams<T> product(int64_t m, int64_t n, int64_t k, LinearMatrix a, LinearMatrix b, void* c) {
  GemmParams<T> g;
  g.m = m;
  g.n = n;
  g.k = k;
  g.a = static_cast<const T*>(a.data);
  g.a_row = a.row;
  g.a_col = a.col;
  g.b = static_cast<const T*>(b.data);
  g.b_row = b.row;
  g.b_col = b.col;
  g.c = static_cast<T*>(c);
  g.c_row = n;
  return g;
}

LinearMatrix transposed(LinearMatrix a) {
  return {a.data, a.col, a.row};
}

auto column_sums(const float*) {
  return linear_kernels().column_sums;
}
auto column_sums(const double*) {
  return linear_kernels().column_sums_f64;
}

template <class T>
void forward(const LinearParams& p) {
  const auto [N, C, K] = p.shape;
  GemmParams<T> g = product<T>(N, K, C, p.x, transposed(p.w), p.y);
  g.bias_col = static_cast<const T*>(p.bias);
  gemm(g);
}

// db[k] = sum over n of dy[n, k]: chunks of rows side by side, then the chunks in order.
template <class T>
void bias_gradient(const LinearBackwardParams& p) {
  const int64_t N = p.shape.N, K = p.shape.K;
  const T* dy = static_cast<const T*>(p.dy.data);
  T* db = static_cast<T*>(p.db);
  const auto sums = column_sums(dy);
  const int64_t chunks = (N + kSumRows - 1) / kSumRows;
  if (chunks <= 1) {
    // Few rows: threads take columns, whole cache lines of them.
    constexpr int64_t kLine = 64 / sizeof(T);
    parallel_for((K + kLine - 1) / kLine, 1 + kGrain / (kLine * (N + 1)), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kLine, last = end * kLine < K ? end * kLine : K;
      sums(dy + first * p.dy.col, p.dy.row, p.dy.col, N, last - first, db + first);
    });
    return;
  }
  Scratch<T> partial(chunks * K);
  parallel_for(chunks, 1 + kGrain / (kSumRows * (K + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c * kSumRows, rows = N - first < kSumRows ? N - first : kSumRows;
      sums(dy + first * p.dy.row, p.dy.row, p.dy.col, rows, K, &partial[c * K]);
    }
  });
  sums(partial.data(), K, 1, chunks, K, db);
}

template <class T>
void backward(const LinearBackwardParams& p) {
  const auto [N, C, K] = p.shape;
  if (p.dx) gemm(product<T>(N, C, K, p.dy, p.w, p.dx));
  if (p.dw) gemm(product<T>(K, C, N, transposed(p.dy), p.x, p.dw));
  if (p.db) bias_gradient<T>(p);
}

}  // namespace

void linear_forward(const LinearParams& p) {
  p.dtype == DType::kFloat64 ? forward<double>(p) : forward<float>(p);
}

void linear_backward(const LinearBackwardParams& p) {
  p.dtype == DType::kFloat64 ? backward<double>(p) : backward<float>(p);
}

}  // namespace fastnn::cpu
