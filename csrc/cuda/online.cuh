// The maximum and the sum of exponentials of a row or column in one pass, and how columns are shared by
// warps: for softmax and cross-entropy.
#pragma once
#include "cuda/reduce.cuh"

namespace fastnn::cuda {

__device__ __forceinline__ float exponential(float x) {
  return expf(x);
}
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}
__device__ __forceinline__ float logarithm(float x) {
  return logf(x);
}
__device__ __forceinline__ double logarithm(double x) {
  return log(x);
}

template <class C>
__device__ __forceinline__ C minus_infinity() {
  return -static_cast<C>(__int_as_float(0x7f800000));
}

// The maximum of numbers seen so far and the sum of exp(x - maximum).
template <class C>
struct Online {
  C maximum, sum;
};
template <class C>
__device__ __forceinline__ Online<C> shuffle(const Online<C>& x, int mask) {
  return {shuffle(x.maximum, mask), shuffle(x.sum, mask)};
}
struct MergeOnline {
  template <class C>
  __device__ __forceinline__ Online<C> operator()(const Online<C>& a, const Online<C>& b) const {
    const C maximum = Maximum()(a.maximum, b.maximum);
    // Parts that agree on minus infinity have no NaN between them; on infinity they have, as torch's sum.
    const bool agree = maximum < -minus_infinity<C>();
    const C from_a = agree && a.maximum == maximum ? a.sum : a.sum * exponential(a.maximum - maximum);
    const C from_b = agree && b.maximum == maximum ? b.sum : b.sum * exponential(b.maximum - maximum);
    return {maximum, from_a + from_b};
  }
};
template <class C>
__device__ __forceinline__ Online<C> with(const Online<C>& seen, C x) {
  return MergeOnline()(seen, Online<C>{x, C(1)});
}
template <class C>
__device__ __forceinline__ Online<C> nothing() {
  return {minus_infinity<C>(), C(0)};
}

// ---- Columns: one dimension of [outer, length, inner] ----

constexpr int kSplits = 8;  // warps of a block, each with every eighth element of 32 columns

// What the warps found for this column, merged in their order.
template <class V, class F>
__device__ __forceinline__ V merge_splits(const V& x, const F& f) {
  FASTNN_SHARED(V, parts, kSplits * kWarp);
  parts[threadIdx.y * kWarp + threadIdx.x] = x;
  __syncthreads();
  V all = parts[threadIdx.x];
#pragma unroll
  for (int split = 1; split < kSplits; ++split) all = f(all, parts[split * kWarp + threadIdx.x]);
  return all;
}

// Column (o, i) begins at o * length * inner + i. Threads past the last column stay for the barrier.
struct Column {
  int64_t begin;
  bool exists;
};
__device__ __forceinline__ Column column_of_thread(int64_t outer, int64_t length, int64_t inner) {
  const int64_t column = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  return {column / inner * length * inner + column % inner, column < outer * inner};
}

}  // namespace fastnn::cuda
