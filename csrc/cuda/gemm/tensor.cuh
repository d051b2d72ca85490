// A tile's product on tensor cores (mma.sync): bfloat16, float16, and float rounded to tf32; sums are float.
//
// A warp has kWarpRows x kWarpCols sums. Fragments (mma.cuh) come by ldmatrix, transposed where the tile lies
// along rows; of tf32, whose numbers it can't transpose, by single loads then.
#pragma once
#include <type_traits>

#include "cuda/gemm/product.cuh"

namespace fastnn::cuda {

template <class T_, int kRows_, int kCols_, int kWarpRows, int kWarpCols>
struct TensorCores {
  using T = T_;
  using C = float;
  static constexpr bool kTf32 = std::is_same_v<T, float>;
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kWarpsAcross = kCols / kWarpCols;
  static constexpr int kThreads = 32 * (kRows / kWarpRows) * kWarpsAcross, kBlocks = 256 / kThreads,
                       kStages = 4;
  // Products of 16 x 8 over two packs of depth.
  static constexpr int M = kWarpRows / 16, N = kWarpCols / 8, P = Pack<T>::N, kSteps = kDepthPacks / 2;
  static_assert(N % 2 == 0);

  static constexpr int kChain = 0;  // roundings of the sums are nothing beside those of the factors
  struct Sums {
    float of[M][N][4] = {};
  };
  __device__ __forceinline__ static int warp_row() {
    return static_cast<int>(threadIdx.x) / 32 / kWarpsAcross * kWarpRows;
  }
  __device__ __forceinline__ static int warp_col() {
    return static_cast<int>(threadIdx.x) / 32 % kWarpsAcross * kWarpCols;
  }

  template <class TileA, class TileB>
  __device__ __forceinline__ static void add(Sums& c, const T* a, const T* b) {
#pragma unroll(kTf32 ? 1 : kSteps)  // spills otherwise
    for (int step = 0; step < kSteps; ++step) {
      uint32_t fa[M][4];
#pragma unroll
      for (int i = 0; i < M; ++i) load_fragments<TileA, true>(fa[i], a, warp_row() + i * 16, step * 2 * P);
#pragma unroll
      for (int j = 0; j < N; j += 2) {
        uint32_t two[4];  // of both products, each lower and upper depth
        load_fragments<TileB, false>(two, b, warp_col() + j * 8, step * 2 * P);
        const uint32_t fb[2][2] = {{two[0], two[1]}, {two[2], two[3]}};
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int i = 0; i < M; ++i) multiply(c.of[i][j + half], fa[i], fb[half]);
      }
    }
  }

  // f(row, col, sum) for each of the thread's.
  template <class TileA, class TileB, class F>
  __device__ __forceinline__ static void each(const Sums& c, const F& f) {
    const int lane = threadIdx.x % 32, row = warp_row() + lane / 4, col = warp_col() + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = 0; j < N; ++j)
#pragma unroll
        for (int n = 0; n < 4; ++n) f(row + i * 16 + n / 2 * 8, col + j * 8 + n % 2, c.of[i][j][n]);
  }

 private:
  __device__ __forceinline__ static void multiply(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    if constexpr (kTf32) {
      mma_16x8x8_tf32(c, a, b);
    } else {
      mma_16x8x16<T>(c, a, b);
    }
  }

  // Fragments of 16 rows x two packs of depth from (row, k) on, as four squares of 8 rows x one pack: with
  // kRowsFirst, the order of A, register 1 is the lower left square, without, as two products take B, the
  // upper right one.
  template <class Tile, bool kRowsFirst>
  __device__ __forceinline__ static void load_fragments(uint32_t (&out)[4], const T* tile, int row, int k) {
    const int lane = threadIdx.x % 32;
    const auto at = [&](int square, int row_within, int k_within) {
      const int low = square % 2, high = square / 2;
      return tile + Tile::at(row + (kRowsFirst ? low : high) * 8 + row_within,
                             k + (kRowsFirst ? high : low) * P + k_within);
    };
    if constexpr (Tile::kAlongDepth) {
      load_matrices<4, false>(out, at(lane / 8, lane % 8, 0));
    } else if constexpr (!kTf32) {
      load_matrices<4, true>(out, at(lane / 8, 0, lane % 8));
    } else {
#pragma unroll
      for (int square = 0; square < 4; ++square)
        out[square] = __float_as_uint(*at(square, lane / 4, lane % 4));
    }
    if constexpr (kTf32) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[i] = to_tf32(__uint_as_float(out[i]));
    }
  }
};

// The tiles of gemm/product.cuh. Fragments of tf32 take registers to round in, so a warp has half the sums.
template <class T>
using LargeTensorTile = TensorCores<T, kLarge, kLarge, 64, sizeof(T) == 2 ? 64 : 32>;
template <class T>
using SmallTensorTile = TensorCores<T, kSmall, kSmall, 32, 32>;

// Calls f(Products<large tile, small tile>{}) for bfloat16, float16 or tf32.
template <template <class, class> class Products, class F>
void visit_tensor(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kBFloat16: return f(Products<LargeTensorTile<BFloat16>, SmallTensorTile<BFloat16>>{});
    case DType::kFloat16: return f(Products<LargeTensorTile<Float16>, SmallTensorTile<Float16>>{});
    default: return f(Products<LargeTensorTile<float>, SmallTensorTile<float>>{});
  }
}

}  // namespace fastnn::cuda
