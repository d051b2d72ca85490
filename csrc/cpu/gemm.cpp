// Plans a matrix product: which kernel, what is packed, blocks for the caches, the split over threads.
//
// Loops from outside in: threads (a grid over rows and columns of C), k in blocks, columns in blocks
// (packed B: L2), rows in blocks (packed A: L2), then tiles. Each thread packs for itself: with a grid of
// threads that doubles a copy which is O(1/n) of the work, and saves every barrier.
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

// Multiply-adds that are worth waking a thread for: about 2 us of one core.
constexpr int64_t kThreadWork = 1 << 17;
// Bytes of a packed block of A or of B: two of them share an L2 of 1 MiB with what streams by.
constexpr int64_t kBlockBytes = 384 << 10;

// Decided from the whole problem alone, so that a part of it is computed the same way.
struct Plan {
  bool dot = false;
  bool pack_a = false, pack_b = false;
  int64_t k_blocks = 1;
};

template <class T>
Plan make_plan(const GemmParams<T>& g, const GemmTile& tile) {
  Plan plan;
  plan.k_blocks = std::max<int64_t>(1, ceil_div(g.k, tile.k_block));
  plan.dot = !g.packed_a && g.a_col == 1 && g.b_row == 1 && (g.m <= 16 || g.n <= 4);
  plan.pack_b = g.b_col != 1 || g.m > 4 * tile.mr;
  plan.pack_a = !g.packed_a && g.n > 4 * tile.nr && ((g.a_col != 1 && g.a_row != 1) || g.k > 1024);
  return plan;
}

// Rows [i0, i1) and columns [j0, j1) of C; all rows when A is packed.
template <class T>
void run_part(const GemmParams<T>& g, const Plan& plan, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  const auto& kernels = of_type<T>(gemm_kernels());
  const GemmTile& tile = kernels.tile;
  GemmBlock<T> block;
  block.a_row = g.a_row;
  block.a_col = g.a_col;
  block.b_row = g.b_row;
  block.b_col = g.b_col;
  block.c_row = g.c_row;

  // Points `block` at rows [i, i + m), columns [j, j + n), steps [p, p + k).
  const auto place = [&](int64_t i, int64_t m, int64_t j, int64_t n, int64_t p, int64_t k) {
    block.m = m;
    block.n = n;
    block.k = k;
    block.a = g.a + i * g.a_row + p * g.a_col;
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
  const int64_t panels = ceil_div(rows, tile.mr);
  const int64_t lines =
      std::max<int64_t>(1, kBlockBytes / static_cast<int64_t>(sizeof(T)) / std::max<int64_t>(1, k_max));
  const int64_t row_blocks = g.packed_a ? 1 : ceil_div(panels, std::max<int64_t>(1, lines / tile.mr));
  const int64_t n_block = std::max<int64_t>(1, lines / tile.nr) * tile.nr;
  Scratch<T> a_pack(plan.pack_a ? rows * k_max : 0);
  Scratch<T> b_pack(plan.pack_b ? std::min(n_block, j1 - j0) * k_max : 0);

  for (int64_t kb = 0; kb < plan.k_blocks; ++kb) {
    const int64_t p = g.k * kb / plan.k_blocks, k = g.k * (kb + 1) / plan.k_blocks - p;
    for (int64_t j = j0; j < j1; j += n_block) {
      for (int64_t rb = 0; rb < row_blocks; ++rb) {
        const int64_t first = panels * rb / row_blocks, last = panels * (rb + 1) / row_blocks;
        const int64_t i = rows * first / panels, end = rows * last / panels;
        place(i0 + i, end - i, j, std::min(n_block, j1 - j), p, k);
        block.panels = last - first;
        if (g.packed_a) {
          block.a_pack = const_cast<T*>(g.packed_a) + p * g.m;
          block.a_packed = true;
        } else if (plan.pack_a) {
          block.a_pack = a_pack.data() + i * k;
          block.a_packed = j > j0;
        }
        block.b_pack = plan.pack_b ? b_pack.data() : nullptr;
        block.b_packed = rb > 0;
        kernels.block(block);
      }
    }
  }
}

template <class T>
void serial(const GemmParams<T>& g) {
  if (g.m <= 0 || g.n <= 0) return;
  run_part(g, make_plan(g, of_type<T>(gemm_kernels()).tile), 0, g.m, 0, g.n);
}

template <class T>
void threaded(const GemmParams<T>& g) {
  if (g.m <= 0 || g.n <= 0) return;
  const GemmTile& tile = of_type<T>(gemm_kernels()).tile;
  const Plan plan = make_plan(g, tile);
  const int64_t threads =
      std::min<int64_t>(thread_limit(), ceil_div(g.m * g.n * std::max<int64_t>(1, g.k), kThreadWork));
  // The grid of threads: the one whose largest part takes the fewest tiles, then the squarest.
  const int64_t unit = plan.dot ? tile.vec : tile.nr;
  const int64_t row_panels = ceil_div(g.m, tile.mr), col_panels = ceil_div(g.n, unit);
  int64_t grid_m = 1, grid_n = 1, best = INT64_MAX;
  for (int64_t tm = 1; tm <= threads; ++tm) {
    if (tm > 1 && g.packed_a) break;
    const int64_t tn = threads / tm;
    const int64_t part_m = std::max<int64_t>(ceil_div(g.m, tm), 4), part_n = ceil_div(col_panels, tn) * unit;
    const int64_t cost = part_m * part_n * 16 + part_m + part_n;
    if (cost < best) {
      best = cost;
      grid_m = tm;
      grid_n = tn;
    }
  }
  grid_m = std::min(grid_m, g.m);
  (void)row_panels;
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
  const auto& kernels = of_type<T>(gemm_kernels());
  const int64_t k_blocks = std::max<int64_t>(1, ceil_div(g.k, kernels.tile.k_block));
  GemmBlock<T> block;
  block.m = g.m;
  block.panels = ceil_div(g.m, kernels.tile.mr);
  block.a_row = g.a_row;
  block.a_col = g.a_col;
  for (int64_t kb = 0; kb < k_blocks; ++kb) {
    const int64_t p = g.k * kb / k_blocks;
    block.k = g.k * (kb + 1) / k_blocks - p;
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
