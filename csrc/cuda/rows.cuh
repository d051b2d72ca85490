// Kernels that take a row at a time: how a row of [rows, length] is spread over threads and kept in
// registers.
//
// A group of threads, a warp for short rows and a block for longer ones, holds a whole row: the input is read
// once. Thread t holds the packs t, t + threads... of 16 bytes, or single elements where a row does not begin
// on a 16-byte border. 32 elements per thread are what fits beside the arithmetic without spills (16 singly
// read, 4 of double); longer rows are read again from cache, by a block.
#pragma once
#include <type_traits>

#include "cuda/reduce.cuh"

namespace fastnn::cuda {

template <class T, int N>
constexpr int kHeld = sizeof(T) == 8 ? 4
                      : N == 1       ? 16
                                     : 32;

// A row held by kThreads threads, N elements (a pack or one) at a time.
template <class T, int N, int kThreads>
struct Row {
  using C = Compute<T>;
  static constexpr int kPieces = kHeld<T, N> / N;
  C v[kPieces][N];

  // f(piece, element, index in the row) over the elements this thread holds; a test per piece, for N divides
  // the length.
  template <class F>
  __device__ __forceinline__ static void each(int64_t length, const F& f) {
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const int64_t at = (int64_t{k} * kThreads + threadIdx.x % kThreads) * N;
      if (at < length) {
#pragma unroll
        for (int j = 0; j < N; ++j) f(k, j, at + j);
      }
    }
  }
  __device__ __forceinline__ void read(const T* row, int64_t length) {
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const int64_t at = (int64_t{k} * kThreads + threadIdx.x % kThreads) * N;
      if (at < length) read_piece(row + at, v[k]);
    }
  }
  __device__ __forceinline__ void write(T* row, int64_t length) const {
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const int64_t at = (int64_t{k} * kThreads + threadIdx.x % kThreads) * N;
      if (at < length) write_piece(row + at, v[k]);
    }
  }

  __device__ __forceinline__ static void read_piece(const T* p, C (&out)[N]) {
    if constexpr (N == 1) {
      out[0] = load(*p);
    } else {
      const Pack<T> pack = load_pack(p);
#pragma unroll
      for (int j = 0; j < N; ++j) out[j] = load(pack.v[j]);
    }
  }
  __device__ __forceinline__ static void write_piece(T* p, const C (&in)[N]) {
    if constexpr (N == 1) {
      *p = store<T>(in[0]);
    } else {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < N; ++j) pack.v[j] = store<T>(in[j]);
      store_pack(p, pack);
    }
  }
};

constexpr int kRowBlock = 128;   // of warps with a row each
constexpr int kWideBlock = 512;  // threads with one row: up to 16384 elements in registers

// The row of this group, and whether there is one: 64-bit, for rows * length is.
template <int kThreads>
__device__ __forceinline__ int64_t row_of_group() {
  return kThreads == kWarp ? int64_t{blockIdx.x} * (kRowBlock / kWarp) + threadIdx.x / kWarp
                           : int64_t{blockIdx.x};
}

// Loads in flight of a loop over a row that is not held; double's functions leave no registers for more.
template <class T>
constexpr int kInFlight = sizeof(T) == 8 ? 1 : 4;

// Calls f(Int<N>, Int<threads>, held): the spread for rows of this length. held: the row fits the registers.
template <class T, class F>
void visit_rows(int64_t length, bool packed, const F& f) {
  const auto spread = [&](auto n) {
    constexpr int64_t held = kHeld<T, decltype(n)::kValue>;
    if (length <= held * kWarp) return f(n, Int<kWarp>{}, std::true_type{});
    if (length <= held * kWideBlock) return f(n, Int<kWideBlock>{}, std::true_type{});
    return f(n, Int<kWideBlock>{}, std::false_type{});
  };
  if (packed) {
    spread(Int<Pack<T>::N>{});
  } else {
    spread(Int<1>{});
  }
}

// Blocks and threads for `rows` groups.
template <int kThreads>
dim3 row_grid(int64_t rows) {
  return grid_for(rows, kThreads == kWarp ? kRowBlock / kWarp : 1);
}
template <int kThreads>
dim3 row_block() {
  return dim3(kThreads == kWarp ? kRowBlock : kThreads);
}

// Every row of these begins on a 16-byte border.
template <class T, class... Pointers>
bool rows_are_packed(int64_t length, const Pointers*... p) {
  return length % Pack<T>::N == 0 && (is_aligned(p) && ...);
}

}  // namespace fastnn::cuda
