// What a block of a matrix product has in shared memory: tiles of both operands, filled behind its back.
//
// An operand is [rows, depth]: `rows` are the rows of A or the columns of B, `depth` is what is summed over.
// A tile spans 64 bytes of depth and lies as the operand lies in memory, so that 16 bytes are copied as they
// are: along depth (number (row, k) beside (row, k + 1)) or along rows.
#pragma once
#include "cuda/mma.cuh"

namespace fastnn::cuda {

constexpr int kDepthPacks = 4;

template <class T, int kRows_, bool kAlongDepth_>
struct Tile {
  static constexpr int kRows = kRows_, P = Pack<T>::N, kDepth = kDepthPacks * P;
  static constexpr bool kAlongDepth = kAlongDepth_;
  static constexpr int kPacks = kRows * kDepthPacks, kNumbers = kPacks * P;

  // Packs are turned so that no two of the eight that a phase of a load takes share banks: eight rows of a
  // tile along depth; eight depths (ldmatrix), or two packs of each of four (tf32), of one along rows.
  __device__ __forceinline__ static int at(int row, int k) {
    if constexpr (kAlongDepth) {
      return row * kDepth + ((k / P) ^ (row / 2 % kDepthPacks)) * P + k % P;
    } else {
      const int turn = sizeof(T) == 2 ? k % 8 : k % 4 * 2;
      return k * kRows + ((row / P) ^ turn) * P + row % P;
    }
  }
  // Row and depth at which pack i begins: neighbouring threads take neighbouring packs of memory.
  __device__ __forceinline__ static int row_of(int i) {
    return kAlongDepth ? i / kDepthPacks : i % (kRows / P) * P;
  }
  __device__ __forceinline__ static int depth_of(int i) {
    return kAlongDepth ? i % kDepthPacks * P : i / (kRows / P);
  }
};

// One number to shared memory, 0 unless it exists.
template <class T>
__device__ __forceinline__ void copy_number(T* to, const T* from, bool exists) {
  if constexpr (sizeof(T) >= 4) {
    copy_async<sizeof(T)>(to, from, exists);
  } else {
    *to = exists ? *from : T{};
  }
}

// An operand in memory, with any strides; kPacked: packs lie in memory as in a tile, and all of one exist or
// none. Sources have the same functions: fixed(row) is what a thread knows of the packs that begin at `row`
// before it goes through depth, fetch(...) copies the one at depth k.
template <class T, bool kAlongDepth_, bool kPacked_>
struct MatrixSource {
  static constexpr bool kAlongDepth = kAlongDepth_, kPacked = kPacked_;
  static constexpr int P = Pack<T>::N;
  const T* data = nullptr;
  int64_t row = 0, k = 0;  // strides
  int64_t rows = 0, depth = 0;
  int64_t group = 0;  // from one group to the next

  bool is_packed() const {
    const int64_t inner = kAlongDepth ? k : row, outer = kAlongDepth ? row : k;
    return inner == 1 && outer % P == 0 && (kAlongDepth ? depth : rows) % P == 0 && group % P == 0 &&
           is_aligned(data);
  }
  MatrixSource<T, kAlongDepth, true> packed() const { return {data, row, k, rows, depth, group}; }

  struct Fixed {
    const T* at;
    int exist;  // rows from here on, as far as a pack goes
  };
  __device__ __forceinline__ Fixed fixed(int64_t first) const {
    const int64_t left = rows - first;
    return {data + blockIdx.z * group + first * row, left < 0 ? 0 : left < P ? static_cast<int>(left) : P};
  }
  __device__ __forceinline__ void fetch(T* to, const Fixed& f, int64_t first) const {
    if constexpr (kPacked) {
      copy_async<kPackBytes>(to, f.at + (kAlongDepth ? first : first * k), f.exist > 0 && first < depth);
      return;
    }
    const T* from = f.at + first * k;
#pragma unroll
    for (int j = 0; j < P; ++j) {
      if constexpr (kAlongDepth) {
        copy_number(to + j, from + j * k, f.exist > 0 && first + j < depth);
      } else {
        copy_number(to + j, from + j * row, j < f.exist && first < depth);
      }
    }
  }
};

}  // namespace fastnn::cuda
