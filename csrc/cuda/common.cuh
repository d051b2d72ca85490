// What every CUDA kernel here stands on: launching, shared memory (device.cuh), 16-byte moves, 16-bit
// numbers.
//
// Kernels use the words of the CUDA language and this header, no other CUDA interface.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "cuda/device.cuh"
#include "fastnn/dtype.h"

namespace fastnn::cuda {

// For __launch_bounds__(256, kTwoBlocks): without a second number ptxas spills a few registers now and then,
// to make room for more blocks of a multiprocessor.
constexpr int kTwoBlocks = 2;

// ---- Numbers: stored as T, computed as Compute<T> ----

__device__ __forceinline__ float load(float x) {
  return x;
}
__device__ __forceinline__ double load(double x) {
  return x;
}
__device__ __forceinline__ float load(BFloat16 x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}
__device__ __forceinline__ float load(Float16 x) {
  return __half2float(__ushort_as_half(x.bits));
}

// Rounds once, to nearest even.
template <class T>
__device__ __forceinline__ T store(Compute<T> x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 store<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ Float16 store<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// ---- 16-byte moves: the widest access of one thread, 4 floats or 8 halves ----

constexpr int kPackBytes = 16;

template <class T>
struct Pack {
  static constexpr int N = kPackBytes / static_cast<int>(sizeof(T));
  T v[N];
};

// p is aligned to 16 bytes.
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* p) {
  const uint4 raw = *reinterpret_cast<const uint4*>(p);
  Pack<T> pack;
  memcpy(&pack, &raw, kPackBytes);
  return pack;
}

template <class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T>& pack) {
  uint4 raw;
  memcpy(&raw, &pack, kPackBytes);
  __stwb(reinterpret_cast<uint4*>(p), raw);  // an assignment is split by the compiler now and then
}

inline bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % kPackBytes == 0;
}

// A number known at compile time, as an argument of generic functions.
template <int value>
struct Int {
  static constexpr int kValue = value;
};

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Blocks in x for one thread (or `per_block` of anything) per item; 2^31 - 1 blocks are what a grid has.
inline dim3 grid_for(int64_t items, int64_t per_block) {
  const int64_t blocks = ceil_div(items, per_block);
  if (blocks > 0x7fffffff) throw std::invalid_argument("fastnn: a tensor too large for one CUDA grid");
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace fastnn::cuda
