// Plans a matrix product: which kernel, what is packed, blocks for the caches, the split over threads.
//
// Loops from outside in: threads (a grid over rows and columns of C), k in blocks, columns in blocks
// (packed B: L2), panels of rows (A: L1), then tiles along a row of C, so that C streams. Each thread packs
// for itself: with a grid of threads that doubles a copy which is O(1/n) of the work, and saves every
// barrier.
#include "cpu/gemm.h"

#include <algorithm>

#include "cpu/kernels/gemm.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class T>
const GemmTypeKernels<T>& kernels_of() {
  if constexpr (sizeof(T) == sizeof(float)) {
    return gemm_kernels().f32;
  } else {
    return gemm_kernels().f64;
  }
}

// Multiply-adds that are worth waking a thread for: about 2 us of one core.
constexpr int64_t kThreadWork = 1 << 17;
// Bytes of a packed block of B: half of an L2 of 2 MiB; 600 KB costs 3% there.
constexpr int64_t kBlockBytes = 1 << 20;
// Up to so many columns of C dot products beat the tiles.
constexpr int64_t kDotColumns = 4;
// A that is stored by columns is packed this many panels at a time: 3.5 KB of each column, a page.
constexpr int64_t kColumnPanels = 64;

// Sums go back to C after k_block steps; the blocks are as equal as they can be.
template <class T>
int64_t k_blocks(int64_t k) {
  return std::max<int64_t>(1, ceil_div(k, kernels_of<T>().tile.k_block));
}

// Decided from the whole problem alone, so that a part of it is computed the same way.
struct Plan {
  bool dot = false;
  bool pack_a = false, pack_b = false;
  int64_t k_blocks = 1;
};

// Up to so many rows dot products beat the tiles, which would pack B for a few rows: fewer where each sum
// over lanes is over a short product already. Measured for 64 to 2048 steps.
int64_t dot_rows(const GemmTile& tile, int64_t k) {
  const int64_t most = tile.mr >= 14 ? 32 : 24;
  return std::min(most, 8 + k / 20);
}

template <class T>
Plan make_plan(const GemmParams<T>& g, const GemmTile& tile) {
  Plan plan;
  plan.k_blocks = k_blocks<T>(g.k);
  plan.dot =
      !g.packed_a && g.a_col == 1 && g.b_row == 1 && (g.m <= dot_rows(tile, g.k) || g.n <= kDotColumns);
  plan.pack_b = g.b_col != 1 || g.m > 10 * tile.mr;  // in place, B costs a page per step
  plan.pack_a = !g.packed_a && g.a_col != 1 && g.n > 4 * tile.nr;
  return plan;
}

// Rows [i0, i1) and columns [j0, j1) of C; all rows when A is packed.
template <class T>
void run_part(const GemmParams<T>& g, const Plan& plan, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  const auto& kernels = kernels_of<T>();
  const GemmTile& tile = kernels.tile;
  GemmBlock<T> block;
  block.a_row = g.packed_a ? 0 : g.a_row;  // A itself may be null then
  block.a_col = g.packed_a ? 0 : g.a_col;
  block.b_row = g.b_row;
  block.b_col = g.b_col;
  block.c_row = g.c_row;

  // Points `block` at rows [i, i + m), columns [j, j + n), steps [p, p + k).
  const auto place = [&](int64_t i, int64_t m, int64_t j, int64_t n, int64_t p, int64_t k) {
    block.m = m;
    block.n = n;
    block.k = k;
    block.a = g.a + i * block.a_row + p * block.a_col;
    block.b = g.b + p * g.b_row + j * g.b_col;
    block.c = g.c + i * g.c_row + j;
    block.accumulate = g.accumulate || p > 0;
    block.bias_row = g.bias_row && p == 0 ? g.bias_row + i : nullptr;
    block.bias_col = g.bias_col && p == 0 ? g.bias_col + j : nullptr;
  };
  if (plan.dot) {
    place(i0, i1 - i0, j0, j1 - j0, 0, g.k);
    kernels.dot(block);
    return;
  }

  const int64_t rows = i1 - i0;
  const int64_t k_max = ceil_div(g.k, plan.k_blocks);
  const int64_t n_block =
      std::max<int64_t>(1, kBlockBytes / (std::max<int64_t>(1, k_max) * tile.nr * int64_t{sizeof(T)})) *
      tile.nr;
  block.a_room = g.a_row == 1 ? kColumnPanels : 1;
  Scratch<T> a_pack(plan.pack_a ? std::min(rows, block.a_room * tile.mr) * k_max : 0);
  Scratch<T> b_pack(plan.pack_b ? std::min(n_block, j1 - j0) * k_max : 0);
  block.panels = ceil_div(rows, tile.mr);
  block.a_packed = g.packed_a != nullptr;
  block.a_pack = plan.pack_a ? a_pack.data() : nullptr;
  block.b_pack = plan.pack_b ? b_pack.data() : nullptr;
  for (int64_t kb = 0; kb < plan.k_blocks; ++kb) {
    const int64_t p = g.k * kb / plan.k_blocks, k = g.k * (kb + 1) / plan.k_blocks - p;
    if (g.packed_a) block.a_pack = const_cast<T*>(g.packed_a) + p * g.m;
    for (int64_t j = j0; j < j1; j += n_block) {
      place(i0, rows, j, std::min(n_block, j1 - j), p, k);
      kernels.block(block);
    }
  }
}

template <class T>
void serial(const GemmParams<T>& g) {
  if (g.m <= 0 || g.n <= 0) return;
  run_part(g, make_plan(g, kernels_of<T>().tile), 0, g.m, 0, g.n);
}

template <class T>
void threaded(const GemmParams<T>& g) {
  if (g.m <= 0 || g.n <= 0) return;
  const GemmTile& tile = kernels_of<T>().tile;
  const Plan plan = make_plan(g, tile);
  const int64_t threads =
      std::max<int64_t>(1, std::min<int64_t>(thread_limit(), g.m * g.n * g.k / kThreadWork));
  // The grid of threads: the one whose largest part takes the least time. What a part reads counts as so many
  // multiply-adds an element: B comes from a far cache, and is packed or streamed past few rows.
  const int64_t b_cost = plan.dot || plan.pack_b ? 16 : 8, a_cost = 4;
  const int64_t unit = plan.dot ? tile.vec : tile.nr;
  const int64_t col_panels = ceil_div(g.n, unit);
  int64_t grid_m = 1, grid_n = 1, best = INT64_MAX;
  for (int64_t tm = 1; tm <= threads; ++tm) {
    if (tm > 1 && g.packed_a) break;
    const int64_t tn = threads / tm;
    const int64_t part_m = std::max<int64_t>(ceil_div(g.m, tm), 4), part_n = ceil_div(col_panels, tn) * unit;
    const int64_t cost = part_m * part_n + a_cost * part_m + b_cost * part_n;
    if (cost < best) {
      best = cost;
      grid_m = tm;
      grid_n = tn;
    }
  }
  grid_m = std::min(grid_m, g.m);
  parallel_for(grid_m * grid_n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t pm = part / grid_n, pn = part % grid_n;
      const int64_t j0 = std::min(g.n, col_panels * pn / grid_n * unit);
      const int64_t j1 = std::min(g.n, col_panels * (pn + 1) / grid_n * unit);
      if (j0 < j1) run_part(g, plan, g.m * pm / grid_m, g.m * (pm + 1) / grid_m, j0, j1);
    }
  });
}

template <class T>
void pack(const GemmParams<T>& g, T* packed) {
  const auto& kernels = kernels_of<T>();
  const int64_t blocks = k_blocks<T>(g.k);
  GemmBlock<T> block;
  if (g.m <= 0) return;
  block.m = g.m;
  block.panels = ceil_div(g.m, kernels.tile.mr);
  block.a_row = g.a_row;
  block.a_col = g.a_col;
  for (int64_t kb = 0; kb < blocks; ++kb) {
    const int64_t p = g.k * kb / blocks;
    block.k = g.k * (kb + 1) / blocks - p;
    block.a = g.a + p * g.a_col;
    block.a_pack = packed + p * g.m;
    kernels.pack_a(block);
  }
}

}  // namespace

void gemm(const GemmParams<float>& g) {
  threaded(g);
}
void gemm(const GemmParams<double>& g) {
  threaded(g);
}
void gemm_serial(const GemmParams<float>& g) {
  serial(g);
}
void gemm_serial(const GemmParams<double>& g) {
  serial(g);
}
void gemm_pack_a(const GemmParams<float>& g, float* packed) {
  pack(g, packed);
}
void gemm_pack_a(const GemmParams<double>& g, double* packed) {
  pack(g, packed);
}

}  // namespace fastnn::cpu
