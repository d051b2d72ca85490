// c = a b^T of two operands [rows, depth]: the main loop of linear and convolution.
//
// A block has one tile of c, of one group (blockIdx.z), and a share of the depth (blockIdx.y). Tiles of the
// operands go through kStages buffers in shared memory, copied while the one before is multiplied. Shares of
// the depth (where c has too few tiles to fill a GPU) leave their sums in a workspace, which another kernel
// adds in order: the same bits in every run. Math (simt.cuh, tensor.cuh) multiplies, sources (tile.cuh) know
// where operands lie, outputs where c goes.
#pragma once
#include "cuda/divide.cuh"
#include "cuda/gemm/tile.cuh"

namespace fastnn::cuda {

struct ProductGrid {
  int64_t row_tiles, col_tiles;
  int depth_tiles, per_share;  // of all blocks, and of one
  int shares, groups;
};

// Neighbouring blocks, which run at the same time, have a square of c rather than a row: eight row tiles.
__device__ __forceinline__ void tile_of(const ProductGrid& g, int64_t i, int64_t& row, int64_t& col) {
  constexpr int64_t kBand = 8;
  const int64_t band = i / (kBand * g.col_tiles), first = band * kBand, within = i - first * g.col_tiles;
  const int64_t height = g.row_tiles - first < kBand ? g.row_tiles - first : kBand;
  col = within / height;
  row = first + within - col * height;
}

// Sums on their way out, in shared memory: with this width neither the rows that a fragment writes nor, one
// by one, those that an output along rows reads share many banks.
template <class Math>
constexpr int kOutWidth = Math::kCols + 4;
template <class Math>
constexpr size_t kProductBytes = [] {
  const size_t tiles = Math::kStages * (Math::kRows + Math::kCols) * kDepthPacks * kPackBytes;
  const size_t out = sizeof(typename Math::C) * Math::kRows * kOutWidth<Math>;
  return tiles > out ? tiles : out;
}();

// Where the sums of shares wait: [share, group, row, col]; null where there is one share.
template <class C>
struct Parts {
  C* data;
  int64_t rows, cols;
  __device__ __forceinline__ C* at(int64_t share, int64_t row, int64_t col) const {
    return data + ((share * gridDim.z + blockIdx.z) * rows + row) * cols + col;
  }
};

template <class Math, class A, class B, class Out>
__global__ void __launch_bounds__(Math::kThreads, Math::kBlocks)
    product_kernel(A a, B b, Out out, ProductGrid grid, Parts<typename Math::C> parts) {
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
    if constexpr (Math::kChain > 0) {
      if ((tile - begin + 1) % Math::kChain == 0) Math::fold(sums);
    }
    now = now + 1 == Math::kStages ? 0 : now + 1;
    next = next + 1 == Math::kStages ? 0 : next + 1;
  }

  copy_async_wait<0>();
  __syncthreads();
  C* staged = reinterpret_cast<C*>(stages);
  Math::template each<TileA, TileB>(sums,
                                    [&](int r, int c, C sum) { staged[r * kOutWidth<Math> + c] = sum; });
  __syncthreads();
  // Neighbouring threads write neighbours in memory.
  const auto each_of = [&](auto along_rows, auto numbers, const auto& put) {
    constexpr bool kAlongRows = decltype(along_rows)::kValue;
    constexpr int n = decltype(numbers)::kValue;
    for (int i = thread; i < Math::kRows * Math::kCols / n; i += Math::kThreads) {
      const int r = kAlongRows ? i % Math::kRows : i / (Math::kCols / n);
      const int c = (kAlongRows ? i / Math::kRows : i % (Math::kCols / n)) * n;
      C v[n];
#pragma unroll
      for (int j = 0; j < n; ++j) v[j] = staged[r * kOutWidth<Math> + c + j];
      if (row + r < parts.rows && col + c < parts.cols) put(row + r, col + c, v);
    }
  };
  if (parts.data != nullptr) {
    each_of(Int<0>(), Int<1>(),
            [&](int64_t r, int64_t c, const C(&v)[1]) { *parts.at(blockIdx.y, r, c) = v[0]; });
  } else {
    each_of(Int<Out::kAlongRows>(), Int<Out::kNumbers>(),
            [&](int64_t r, int64_t c, const C(&v)[Out::kNumbers]) { out.put(r, c, v); });
  }
}

// An output has c: put() takes kNumbers neighbours of a row, of which those beyond its end don't count;
// neighbouring threads go along columns of c, or along rows.
//
// c as a matrix y, its rows `pitch` apart, plus a bias per column.
template <class T>
struct MatrixOut {
  using C = Compute<T>;
  static constexpr int kNumbers = Pack<T>::N;
  static constexpr bool kAlongRows = false;
  T* y;
  const T* bias;  // or null
  int64_t cols, pitch;
  int64_t group, bias_group;  // from one group to the next
  bool packed;

  MatrixOut(T* y, const T* bias, int64_t cols, int64_t pitch, int64_t group = 0, int64_t bias_group = 0)
      : y(y),
        bias(bias),
        cols(cols),
        pitch(pitch),
        group(group),
        bias_group(bias_group),
        packed(cols % kNumbers == 0 && pitch % kNumbers == 0 && group % kNumbers == 0 && is_aligned(y)) {}

  __device__ __forceinline__ void put(int64_t row, int64_t col, const C (&v)[kNumbers]) const {
    T* to = y + blockIdx.z * group + row * pitch + col;
    const T* add = bias == nullptr ? nullptr : bias + blockIdx.z * bias_group + col;
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) {
      pack.v[j] = store<T>(v[j] + (add == nullptr || col + j >= cols ? C(0) : load(add[j])));
    }
    if (packed) {
      store_pack(to, pack);
    } else {
#pragma unroll
      for (int j = 0; j < kNumbers; ++j)
        if (col + j < cols) to[j] = pack.v[j];
    }
  }
};

// c = the sum of the shares, in order.
template <class C, class Out>
__global__ void __launch_bounds__(256) add_shares(Parts<C> parts, int shares, Out out) {
  constexpr int n = Out::kNumbers;
  const int64_t packs = (parts.cols + n - 1) / n, i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (i >= parts.rows * packs) return;
  const int64_t pack = Out::kAlongRows ? i / parts.rows : i % packs, col = pack * n;
  const int64_t row = Out::kAlongRows ? i - pack * parts.rows : i / packs;
  C v[n] = {};
  for (int share = 0; share < shares; ++share) {
    const C* from = parts.at(share, row, col);
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (col + j < parts.cols) v[j] += from[j];
  }
  out.put(row, col, v);
}

// ---- The choice of tiles and shares; by reckoning, no GPU has measured it yet ----

constexpr int64_t kMultiprocessors = 128;  // of an A100 108, of an H100 132
constexpr int kLarge = 128, kSmall = 64;   // rows and columns of a tile
constexpr int64_t kMostGroups = 65535;

// tf32: floats may be rounded to ten bits of fraction.
inline bool takes_tensor_cores(DType dtype, bool tf32) {
  return dtype == DType::kFloat32 ? tf32 : dtype != DType::kFloat64;
}

// c [rows, cols] of each of the groups, summed over depth.
struct ProductSize {
  int64_t rows, cols, depth, groups = 1;
};
struct ProductPlan {
  bool large;
  ProductGrid grid;
};
inline ProductPlan product_plan(DType dtype, bool packed, const ProductSize& s) {
  const int64_t size = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  const auto tiles = [&](int64_t edge) { return ceil_div(s.rows, edge) * ceil_div(s.cols, edge) * s.groups; };
  ProductPlan plan;
  ProductGrid& g = plan.grid;
  // Large tiles where they keep half of the multiprocessors busy and more than half of one is c. Of doubles
  // they have too many sums, and single numbers take registers of their own.
  plan.large =
      packed && size < 8 && s.rows > kSmall && s.cols > kSmall && tiles(kLarge) * 2 >= kMultiprocessors;
  const int64_t edge = plan.large ? kLarge : kSmall;
  g.row_tiles = ceil_div(s.rows, edge), g.col_tiles = ceil_div(s.cols, edge);
  const int64_t depth_tiles = ceil_div(s.depth * size, kDepthPacks * kPackBytes);
  if (depth_tiles > kMost32) throw std::invalid_argument("fastnn: a sum too long for one CUDA kernel");
  if (s.groups > kMostGroups) throw std::invalid_argument("fastnn: too many groups for one CUDA kernel");
  g.depth_tiles = static_cast<int>(depth_tiles);
  // Two blocks a multiprocessor, none with less than 16 tiles to go through.
  const int64_t wanted = 2 * kMultiprocessors / tiles(edge), most = depth_tiles / 16;
  const int64_t shares = wanted < most ? wanted : most;
  g.per_share = shares > 1 ? static_cast<int>(ceil_div(depth_tiles, shares)) : g.depth_tiles;
  g.shares = shares > 1 ? static_cast<int>(ceil_div(depth_tiles, g.per_share)) : 1;
  g.groups = static_cast<int>(s.groups);
  return plan;
}

// Bytes of memory that the shares of a product need at most.
inline int64_t product_workspace(DType dtype, const ProductSize& s) {
  const int64_t numbers = s.rows * s.cols * s.groups;
  if (numbers == 0) return 0;
  int shares = 1;
  for (bool packed : {false, true}) {
    const int these = product_plan(dtype, packed, s).grid.shares;
    shares = these > shares ? these : shares;
  }
  return shares == 1 ? 0 : shares * numbers * (dtype == DType::kFloat64 ? 8 : 4);
}

template <class Math, class A, class B, class Out>
void product(const ProductGrid& g, const ProductSize& s, const A& a, const B& b, const Out& out,
             void* workspace, Stream stream) {
  using C = typename Math::C;
  const Parts<C> parts{g.shares > 1 ? static_cast<C*>(workspace) : nullptr, s.rows, s.cols};
  dim3 blocks = grid_for(g.row_tiles * g.col_tiles, 1);
  blocks.y = static_cast<unsigned>(g.shares), blocks.z = static_cast<unsigned>(g.groups);
  launch(product_kernel<Math, A, B, Out>, blocks, dim3(Math::kThreads), kProductBytes<Math>, stream, a, b,
         out, g, parts);
  if (g.shares == 1) return;
  blocks = grid_for(s.rows * ceil_div(s.cols, Out::kNumbers), 256);
  blocks.z = static_cast<unsigned>(g.groups);
  launch(add_shares<C, Out>, blocks, dim3(256), 0, stream, parts, g.shares, out);
}

// As product(), with the tiles of the plan; a and b are packed or aren't, both.
template <class Large, class Small, class A, class B, class Out>
void planned_product(DType dtype, const ProductSize& s, const A& a, const B& b, const Out& out,
                     void* workspace, Stream stream) {
  const ProductPlan plan = product_plan(dtype, A::kPacked, s);
  if constexpr (A::kPacked) {
    if (plan.large) return product<Large>(plan.grid, s, a, b, out, workspace, stream);
  }
  product<Small>(plan.grid, s, a, b, out, workspace, stream);
}

}  // namespace fastnn::cuda
