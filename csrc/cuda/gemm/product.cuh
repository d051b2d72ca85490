// c = a b^T of two operands [rows, depth]: the main loop of linear and convolution.
//
// A block has one tile of c and a share of the depth. Tiles of the operands go through kStages buffers in
// shared memory, copied while the one before is multiplied. Shares of the depth (where c has too few tiles to
// fill a GPU) leave their sums in a workspace, which another kernel adds in order: the same bits in every
// run. Math (simt.cuh, tensor.cuh) multiplies, sources (tile.cuh) know where operands lie, outputs where c
// goes.
#pragma once
#include "cuda/divide.cuh"
#include "cuda/gemm/tile.cuh"

namespace fastnn::cuda {

struct ProductGrid {
  int64_t row_tiles, col_tiles;
  int depth_tiles, per_share;  // of all blocks, and of one
  int shares;
};

// Neighbouring blocks, which run at the same time, have a square of c rather than a row: eight row tiles.
__device__ __forceinline__ void tile_of(const ProductGrid& g, int64_t i, int64_t& row, int64_t& col) {
  constexpr int64_t kBand = 8;
  const int64_t band = i / (kBand * g.col_tiles), first = band * kBand, within = i - first * g.col_tiles;
  const int64_t height = g.row_tiles - first < kBand ? g.row_tiles - first : kBand;
  col = within / height;
  row = first + within - col * height;
}

// Sums on their way out, in shared memory; the odd width keeps neighbouring rows in other banks.
template <class Math>
constexpr int kOutWidth = Math::kCols + 8;
template <class Math>
constexpr size_t kProductBytes = [] {
  const size_t tiles = Math::kStages * (Math::kRows + Math::kCols) * kDepthPacks * kPackBytes;
  const size_t out = sizeof(typename Math::C) * Math::kRows * kOutWidth<Math>;
  return tiles > out ? tiles : out;
}();

template <class Math, class A, class B, class Out>
__global__ void __launch_bounds__(Math::kThreads, Math::kBlocks)
    product_kernel(A a, B b, Out out, ProductGrid grid) {
  using T = typename Math::T;
  using C = typename Math::C;
  using TileA = Tile<T, Math::kRows, A::kAlongDepth>;
  using TileB = Tile<T, Math::kCols, B::kAlongDepth>;
  constexpr int kPacksA = TileA::kPacks / Math::kThreads, kPacksB = TileB::kPacks / Math::kThreads;
  static_assert(kPacksA * Math::kThreads == TileA::kPacks && kPacksB * Math::kThreads == TileB::kPacks);
  FASTNN_DYNAMIC_SHARED(T, stages);

  int64_t row, col;
  tile_of(grid, blockIdx.x, row, col);
  row *= Math::kRows, col *= Math::kCols;
  const int begin = static_cast<int>(blockIdx.y) * grid.per_share;
  const int end = begin + grid.per_share < grid.depth_tiles ? begin + grid.per_share : grid.depth_tiles;

  const int thread = threadIdx.x;
  typename A::Fixed of_a[kPacksA];
  typename B::Fixed of_b[kPacksB];
#pragma unroll
  for (int i = 0; i < kPacksA; ++i) of_a[i] = a.fixed(row + TileA::row_of(i * Math::kThreads + thread));
#pragma unroll
  for (int i = 0; i < kPacksB; ++i) of_b[i] = b.fixed(col + TileB::row_of(i * Math::kThreads + thread));
  constexpr int kStage = TileA::kNumbers + TileB::kNumbers;
  const auto fetch = [&](int tile, T* to_a) {
    if (tile < end) {
      T* to_b = to_a + TileA::kNumbers;
#pragma unroll
      for (int i = 0; i < kPacksA; ++i) {
        const int pack = i * Math::kThreads + thread, r = TileA::row_of(pack), k = TileA::depth_of(pack);
        a.fetch(to_a + TileA::at(r, k), of_a[i], int64_t{tile} * TileA::kDepth + k);
      }
#pragma unroll
      for (int i = 0; i < kPacksB; ++i) {
        const int pack = i * Math::kThreads + thread, r = TileB::row_of(pack), k = TileB::depth_of(pack);
        b.fetch(to_b + TileB::at(r, k), of_b[i], int64_t{tile} * TileB::kDepth + k);
      }
    }
    copy_async_commit();  // also of nothing: the wait counts groups
  };

  typename Math::Sums sums;
#pragma unroll
  for (int stage = 0; stage < Math::kStages - 1; ++stage) fetch(begin + stage, stages + stage * kStage);
  int now = 0, next = Math::kStages - 1;  // stages
  for (int tile = begin; tile < end; ++tile) {
    copy_async_wait<Math::kStages - 2>();
    __syncthreads();  // the tile has come for all, and all are through with the one before
    fetch(tile + Math::kStages - 1, stages + next * kStage);
    const T* from = stages + now * kStage;
    Math::template add<TileA, TileB>(sums, from, from + TileA::kNumbers);
    now = now + 1 == Math::kStages ? 0 : now + 1;
    next = next + 1 == Math::kStages ? 0 : next + 1;
  }

  copy_async_wait<0>();
  __syncthreads();
  C* staged = reinterpret_cast<C*>(stages);
  Math::template each<TileA, TileB>(sums,
                                    [&](int r, int c, C sum) { staged[r * kOutWidth<Math> + c] = sum; });
  __syncthreads();
  constexpr int P = Pack<T>::N;
  for (int i = thread; i < Math::kRows * Math::kCols / P; i += Math::kThreads) {
    const int r = i / (Math::kCols / P), c = i % (Math::kCols / P) * P;
    C v[P];
#pragma unroll
    for (int j = 0; j < P; ++j) v[j] = staged[r * kOutWidth<Math> + c + j];
    out.put(row + r, col + c, v);
  }
}

// c as a matrix y of rows `pitch` apart, plus a bias per column; or shares of it [share, row, col].
template <class T>
struct MatrixOut {
  using C = Compute<T>;
  static constexpr int P = Pack<T>::N;
  T* y;
  const T* bias;  // or null
  int64_t rows, cols, pitch;
  C* parts = nullptr;
  bool packed;

  MatrixOut(T* y, const T* bias, int64_t rows, int64_t cols)
      : y(y), bias(bias), rows(rows), cols(cols), pitch(cols), packed(cols % P == 0 && is_aligned(y)) {}

  __device__ __forceinline__ void put(int64_t row, int64_t col, const C (&v)[P]) const {
    if (row >= rows || col >= cols) return;
    if (parts != nullptr) {
      C* to = parts + (blockIdx.y * rows + row) * cols + col;
#pragma unroll
      for (int j = 0; j < P; ++j)
        if (col + j < cols) to[j] = v[j];
      return;
    }
    write(row * pitch + col, col, v);
  }
  // y[at...] = v + bias of col...
  __device__ __forceinline__ void write(int64_t at, int64_t col, const C (&v)[P]) const {
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < P; ++j) {
      const C b = bias == nullptr || col + j >= cols ? C(0) : load(bias[col + j]);
      pack.v[j] = store<T>(v[j] + b);
    }
    if (packed) {
      store_pack(y + at, pack);
    } else {
#pragma unroll
      for (int j = 0; j < P; ++j)
        if (col + j < cols) y[at + j] = pack.v[j];
    }
  }
};

// y = the sum of the shares.
template <class T>
__global__ void __launch_bounds__(256) add_shares(MatrixOut<T> out, int shares) {
  using C = Compute<T>;
  constexpr int P = Pack<T>::N;
  const int64_t packs = (out.cols + P - 1) / P, i = int64_t{blockIdx.x} * 256 + threadIdx.x, row = i / packs;
  if (row >= out.rows) return;
  const int64_t col = (i - row * packs) * P;
  C v[P] = {};
  for (int share = 0; share < shares; ++share) {
    const C* from = out.parts + (share * out.rows + row) * out.cols + col;
#pragma unroll
    for (int j = 0; j < P; ++j)
      if (col + j < out.cols) v[j] += from[j];
  }
  out.write(row * out.pitch + col, col, v);
}

// ---- The choice of tiles and shares; by reckoning, no GPU has measured it yet ----

constexpr int64_t kMultiprocessors = 128;  // of an A100 108, of an H100 132
constexpr int kLarge = 128, kSmall = 64;   // rows and columns of a tile

struct ProductPlan {
  bool large;
  ProductGrid grid;
};
inline ProductPlan product_plan(DType dtype, bool packed, int64_t rows, int64_t cols, int64_t depth) {
  const int64_t size = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  const auto tiles = [&](int64_t edge) { return ceil_div(rows, edge) * ceil_div(cols, edge); };
  ProductPlan plan;
  ProductGrid& g = plan.grid;
  // Large tiles where they keep half of the multiprocessors busy. Of doubles they have too many sums, and
  // single numbers take registers of their own.
  plan.large = packed && size < 8 && tiles(kLarge) * 2 >= kMultiprocessors;
  const int64_t edge = plan.large ? kLarge : kSmall;
  g.row_tiles = ceil_div(rows, edge), g.col_tiles = ceil_div(cols, edge);
  const int64_t depth_tiles = ceil_div(depth * size, kDepthPacks * kPackBytes);
  if (depth_tiles > kMost32) throw std::invalid_argument("fastnn: a sum too long for one CUDA kernel");
  g.depth_tiles = static_cast<int>(depth_tiles);
  // Two blocks a multiprocessor, none with less than 16 tiles to go through.
  const int64_t wanted = 2 * kMultiprocessors / tiles(edge), most = depth_tiles / 16;
  const int64_t shares = wanted < most ? wanted : most;
  g.per_share = shares > 1 ? static_cast<int>(ceil_div(depth_tiles, shares)) : g.depth_tiles;
  g.shares = shares > 1 ? static_cast<int>(ceil_div(depth_tiles, g.per_share)) : 1;
  return plan;
}

// Bytes of memory that the shares of a product need at most.
inline int64_t product_workspace(DType dtype, int64_t rows, int64_t cols, int64_t depth) {
  if (rows == 0 || cols == 0) return 0;
  int shares = 1;
  for (bool packed : {false, true}) {
    const int these = product_plan(dtype, packed, rows, cols, depth).grid.shares;
    shares = these > shares ? these : shares;
  }
  return shares == 1 ? 0 : shares * rows * cols * (dtype == DType::kFloat64 ? 8 : 4);
}

template <class Math, class A, class B>
void product(const ProductGrid& g, const A& a, const B& b, MatrixOut<typename Math::T> out, void* workspace,
             Stream stream) {
  using T = typename Math::T;
  if (g.shares > 1) out.parts = static_cast<typename Math::C*>(workspace);
  dim3 blocks = grid_for(g.row_tiles * g.col_tiles, 1);
  blocks.y = static_cast<unsigned>(g.shares);
  launch(product_kernel<Math, A, B, MatrixOut<T>>, blocks, dim3(Math::kThreads), kProductBytes<Math>, stream,
         a, b, out, g);
  if (g.shares == 1) return;
  launch(add_shares<T>, grid_for(out.rows * ceil_div(out.cols, Pack<T>::N), 256), dim3(256), 0, stream, out,
         g.shares);
}

}  // namespace fastnn::cuda
