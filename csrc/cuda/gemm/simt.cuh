// A tile's product by fused multiply-adds: float and double, rounded as IEEE 754 has it.
//
// 16 x 16 threads with kRows / 16 x kCols / 16 sums each. A warp is 4 x 8 threads; of an operand along depth
// a thread takes every 16th row, of one along rows packs of neighbours: both are free of bank conflicts, and
// a thread loads 16 bytes at a time.
#pragma once
#include "cuda/gemm/product.cuh"

namespace fastnn::cuda {

template <class T_, int kRows_, int kCols_>
struct Simt {
  using T = T_;
  using C = T_;
  static constexpr int kRows = kRows_, kCols = kCols_, kThreads = 256, kStages = 3;
  static constexpr int kBlocks = kRows < 128 ? 2 : 1;  // large tiles: 64 sums a thread, too many for two
  static constexpr int kSide = 16, P = Pack<T>::N, M = kRows / kSide, N = kCols / kSide;
  static constexpr int kHeld = 4;  // rows of A in registers; all eight of a large tile are too many

  // A long chain of roundings is worse than a short one of short ones: `of` goes into `all` after kChain
  // tiles.
  static constexpr int kChain = 4;
  struct Sums {
    C of[M][N] = {}, all[M][N] = {};
  };
  __device__ __forceinline__ static void fold(Sums& c) {
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = 0; j < N; ++j) c.all[i][j] += c.of[i][j], c.of[i][j] = 0;
  }
  struct Place {
    int row, col;  // in 16 x 16
  };
  __device__ __forceinline__ static Place place() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    return {lane / 8 + warp / 2 * 4, lane % 8 + warp % 2 * 8};
  }
  // Number i of the rows (columns) of thread t.
  template <bool kAlongDepth>
  __device__ __forceinline__ static int mine(int i, int t) {
    return kAlongDepth ? i * kSide + t : (i / P * kSide + t) * P + i % P;
  }

  template <class TileA, class TileB>
  __device__ __forceinline__ static void add(Sums& c, const T* a, const T* b) {
    const Place t = place();
#pragma unroll 1
    for (int q = 0; q < kDepthPacks; ++q) {
#pragma unroll
      for (int first = 0; first < M; first += kHeld) {
        T fa[P][kHeld];
        if constexpr (TileA::kAlongDepth) {
#pragma unroll
          for (int i = 0; i < kHeld; ++i) {
            const Pack<T> pack = load_pack(a + TileA::at(mine<true>(first + i, t.row), q * P));
#pragma unroll
            for (int k = 0; k < P; ++k) fa[k][i] = pack.v[k];
          }
        } else {
#pragma unroll
          for (int k = 0; k < P; ++k) load_rows<TileA>(fa[k], a, first, t.row, q * P + k);
        }
        if constexpr (TileB::kAlongDepth) {
#pragma unroll
          for (int j = 0; j < N; ++j) {
            const Pack<T> pack = load_pack(b + TileB::at(mine<true>(j, t.col), q * P));
#pragma unroll
            for (int k = 0; k < P; ++k)
#pragma unroll
              for (int i = 0; i < kHeld; ++i)
                c.of[first + i][j] = fma(fa[k][i], pack.v[k], c.of[first + i][j]);
          }
        } else {
#pragma unroll
          for (int k = 0; k < P; ++k) {
            T fb[N];
            load_rows<TileB>(fb, b, 0, t.col, q * P + k);
#pragma unroll
            for (int j = 0; j < N; ++j)
#pragma unroll
              for (int i = 0; i < kHeld; ++i) c.of[first + i][j] = fma(fa[k][i], fb[j], c.of[first + i][j]);
          }
        }
      }
    }
  }

  // f(row, col, sum) for each of the thread's.
  template <class TileA, class TileB, class F>
  __device__ __forceinline__ static void each(const Sums& c, const F& f) {
    const Place t = place();
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = 0; j < N; ++j)
        f(mine<TileA::kAlongDepth>(i, t.row), mine<TileB::kAlongDepth>(j, t.col), c.all[i][j] + c.of[i][j]);
  }

 private:
  // The thread's rows from number `first` on at depth k, of a tile along rows.
  template <class Tile, int n>
  __device__ __forceinline__ static void load_rows(T (&to)[n], const T* tile, int first, int t, int k) {
#pragma unroll
    for (int i = 0; i < n; i += P) {
      const Pack<T> pack = load_pack(tile + Tile::at(mine<false>(first + i, t), k));
#pragma unroll
      for (int j = 0; j < P; ++j) to[i + j] = pack.v[j];
    }
  }
};

// Calls f(Products<large tile, small tile>{}) for float or double. Large tiles of doubles have too many sums.
template <template <class, class> class Products, class F>
void visit_simt(DType dtype, const F& f) {
  if (dtype == DType::kFloat64) {
    f(Products<Simt<double, kSmall, kSmall>, Simt<double, kSmall, kSmall>>{});
  } else {
    f(Products<Simt<float, kLarge, kLarge>, Simt<float, kSmall, kSmall>>{});
  }
}

}  // namespace fastnn::cuda
