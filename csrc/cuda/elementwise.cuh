// y[i] = f(x0[i], x1[i]...) over dense memory, any alignment, any length.
//
// Bound by memory: each thread keeps kUnroll 16-byte loads per input in flight, neighbours read
// neighbours. Where all pointers are equally far from a 16-byte border, at most 15 bytes before the first and
// after the last full pack go element by element (block 0 does both); otherwise every element does.
#pragma once
#include <utility>

#include "cuda/common.cuh"

namespace fastnn::cuda {

constexpr int kElementwiseThreads = 256;
constexpr int kUnroll = 4;  // 64 bytes in flight per thread and input cover the latency at full occupancy

template <class T, int kInputs>
struct ElementwiseInputs {
  const T* x[kInputs];
};

template <class T, class F, size_t... I>
__device__ __forceinline__ T apply_element(const F& f, const T* const* values, std::index_sequence<I...>) {
  return store<T>(f(load(*values[I])...));
}

// What a thread applies: f, or what f.prepare() makes of it, once, from numbers in device memory.
template <class F>
__device__ __forceinline__ auto prepared(const F& f) {
  if constexpr (requires { f.prepare(); }) {
    return f.prepare();
  } else {
    return f;
  }
}

// f on element i of every input.
template <class T, int kInputs, class F>
__device__ __forceinline__ void one_element(const ElementwiseInputs<T, kInputs>& in, T* y, int64_t i,
                                            const F& f) {
  const T* values[kInputs];
#pragma unroll
  for (int k = 0; k < kInputs; ++k) values[k] = in.x[k] + i;
  y[i] = apply_element<T>(f, values, std::make_index_sequence<kInputs>{});
}

// [0, head) and [head + packs * Pack<T>::N, n) by element, between them packs.
template <class T, int kInputs, class F>
__global__ void __launch_bounds__(kElementwiseThreads)
    elementwise_kernel(ElementwiseInputs<T, kInputs> in, T* y, int64_t n, int head, int64_t packs,
                       F function) {
  const auto f = prepared(function);
  constexpr int N = Pack<T>::N;
  const int64_t first = int64_t{blockIdx.x} * (kElementwiseThreads * kUnroll) + threadIdx.x;
  Pack<T> x[kUnroll][kInputs];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t pack = first + u * kElementwiseThreads;
    if (pack < packs) {
#pragma unroll
      for (int k = 0; k < kInputs; ++k) x[u][k] = load_pack(in.x[k] + head + pack * N);
    }
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t pack = first + u * kElementwiseThreads;
    if (pack < packs) {
      Pack<T> out;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const T* values[kInputs];
#pragma unroll
        for (int k = 0; k < kInputs; ++k) values[k] = &x[u][k].v[j];
        out.v[j] = apply_element<T>(f, values, std::make_index_sequence<kInputs>{});
      }
      store_pack(y + head + pack * N, out);
    }
  }
  if (blockIdx.x == 0) {
    const int64_t tail = head + packs * N;
    if (threadIdx.x < head) one_element(in, y, threadIdx.x, f);
    if (tail + threadIdx.x < n) one_element(in, y, tail + threadIdx.x, f);
  }
}

// The same without packs: pointers that no common shift aligns.
template <class T, int kInputs, class F>
__global__ void __launch_bounds__(kElementwiseThreads)
    elementwise_unaligned_kernel(ElementwiseInputs<T, kInputs> in, T* y, int64_t n, F function) {
  const auto f = prepared(function);
  const int64_t first = int64_t{blockIdx.x} * (kElementwiseThreads * kUnroll) + threadIdx.x;
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = first + u * kElementwiseThreads;
    if (i < n) one_element(in, y, i, f);
  }
}

// y may be one of the inputs.
template <class T, class F, class... Inputs>
void elementwise(int64_t n, T* y, const F& f, Stream stream, const Inputs*... x) {
  if (n == 0) return;
  constexpr int kInputs = sizeof...(Inputs);
  const ElementwiseInputs<T, kInputs> in{{x...}};
  const auto shift = [](const T* p) { return reinterpret_cast<uintptr_t>(p) % kPackBytes; };
  constexpr int64_t kPerBlock = kElementwiseThreads * kUnroll;
  if (((shift(x) == shift(y)) && ...)) {
    const int64_t until_border = (kPackBytes - shift(y)) % kPackBytes / sizeof(T);
    const int head = static_cast<int>(until_border < n ? until_border : n);
    const int64_t packs = (n - head) / Pack<T>::N;
    const int64_t blocks = packs > 0 ? ceil_div(packs, kPerBlock) : 1;
    launch(elementwise_kernel<T, kInputs, F>, dim3(static_cast<unsigned>(blocks)), dim3(kElementwiseThreads),
           0, stream, in, y, n, head, packs, f);
  } else {
    launch(elementwise_unaligned_kernel<T, kInputs, F>, dim3(static_cast<unsigned>(ceil_div(n, kPerBlock))),
           dim3(kElementwiseThreads), 0, stream, in, y, n, f);
  }
}

}  // namespace fastnn::cuda
