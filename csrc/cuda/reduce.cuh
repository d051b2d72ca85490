// Sums and maxima over a group of threads, in a fixed order: the same bits in every run.
//
// A group is one warp or a whole block; every thread of the group calls, every thread gets the result.
#pragma once
#include "cuda/common.cuh"

namespace fastnn::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ float inverse_root(float x) {
  return 1.0f / sqrtf(x);
}
__device__ __forceinline__ double inverse_root(double x) {
  return 1.0 / sqrt(x);
}

struct Sum {
  template <class C>
  __device__ __forceinline__ C operator()(C a, C b) const {
    return a + b;
  }
};
// NaN wins, as in torch's softmax: max(NaN, x) is NaN from either side.
struct Maximum {
  template <class C>
  __device__ __forceinline__ C operator()(C a, C b) const {
    return a > b || a != a ? a : b;
  }
};

// Two sums in one reduction.
template <class C>
struct Two {
  C a, b;
};
struct SumTwo {
  template <class C>
  __device__ __forceinline__ Two<C> operator()(const Two<C>& x, const Two<C>& y) const {
    return {x.a + y.a, x.b + y.b};
  }
};

template <class C>
__device__ __forceinline__ C shuffle(C x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <class C>
__device__ __forceinline__ Two<C> shuffle(const Two<C>& x, int mask) {
  return {shuffle(x.a, mask), shuffle(x.b, mask)};
}
template <class V, class F>
__device__ __forceinline__ V warp_reduce(V x, const F& f) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = f(x, shuffle(x, mask));
  return x;
}

// kThreads: those of the group, 32 (of a block of any size, without shared memory) or the block's.
template <int kThreads, class V, class F>
__device__ __forceinline__ V group_reduce(V x, const F& f) {
  x = warp_reduce(x, f);
  if constexpr (kThreads > kWarp) {
    constexpr int kWarps = kThreads / kWarp;
    FASTNN_SHARED(V, partial, kWarps);
    __syncthreads();  // the previous reduction has been read
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
    __syncthreads();
    x = partial[0];
#pragma unroll 4
    for (int warp = 1; warp < kWarps; ++warp) x = f(x, partial[warp]);
  }
  return x;
}

}  // namespace fastnn::cuda
