// C = A B: register tiles, packing and dot products.
//
// tile:  R x NV registers of C stay in place over k; each step loads NV vectors of B and broadcasts R
//        elements of A. 32 registers hold 14 x 2 sums, 16 hold 6 x 2 (float: 6 x 16 columns). Strides of A
//        are free, so one kernel reads packed panels, rows and columns alike. Few rows take wider tiles: a
//        lone row needs 8 vectors of sums to hide the latency of the multiply-add.
// pack:  panel by panel, just before the first use, while it is wanted in L1 anyway.
// dot:   for A by rows and B by columns and few rows: partial sums run along k in the lanes.
//
// Every element of C is one chain of multiply-adds in the order of k (dot: one chain per lane), whatever tile
// it falls in; so neither the split over threads nor the panels change a bit of the result.
#include "cpu/kernels/gemm.h"

#include "cpu/simd/transpose.h"
#include "cpu/simd/vec.h"

namespace {

using fastnn::cpu::GemmBlock;
using fastnn::cpu::GemmTile;
using fastnn::cpu::GemmTypeKernels;

// Sums in registers: 28 of 32, 12 of 16 with AVX2; SSE2 also needs registers for the products.
#if defined(__AVX512F__)
constexpr int kRows = 14, kMaxSums = 28;
#elif defined(__AVX2__)
constexpr int kRows = 6, kMaxSums = 12;
#else
constexpr int kRows = 4, kMaxSums = 8;
#endif
constexpr int kFarSteps = 48;  // a tile over fewer steps ends before a line of C could arrive
constexpr int kCols = 2;       // vectors of columns in a tile of full height

template <class T>
struct TileArgs {
  int64_t k;
  const T* a;
  int64_t a_row, a_col;
  const T* b;
  int64_t b_row;
  T* c;
  int64_t c_row;
  bool accumulate;
  const T* bias_row;
  const T* bias_col;
  int lanes;  // columns in the last vector
};

template <class T, int R, int NV, bool Masked>
void tile(const TileArgs<T>& t) {
  using V = Vec<T>;
  constexpr int kLast = NV - 1;
  // Steps of B asked for ahead: in place each may be a page of its own, which no hardware prefetcher follows
  // (up to 1.5x there, nothing lost elsewhere). Low tiles take their steps faster, but live in L2.
  constexpr int kAhead = R <= 3 ? 8 : 16;
  V sum[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[r][v] = V(T(0));

  // C comes from far away: asked for now, it is there when the sums are.
  if (t.k >= kFarSteps) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) __builtin_prefetch(t.c + r * t.c_row + v * V::N, 1);
  }

  // Every third row has a pointer, the two after it are one and two strides on: addresses that x86 forms
  // for nothing, where 14 pointers would not fit its registers.
  constexpr int kGroups = (R + 2) / 3;
  const T* rows[kGroups];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) rows[g] = t.a + 3 * g * t.a_row;
  const int64_t a_row = t.a_row, a_col = t.a_col, b_row = t.b_row;
  const T* b = t.b;
  const int lanes = t.lanes;
  for (int64_t p = 0; p < t.k; ++p) {
    V bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v)
      bv[v] = Masked && v == kLast ? load(b + v * V::N, lanes) : load(b + v * V::N);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V av(rows[r / 3][r % 3 * a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[r][v] = fma(av, bv[v], sum[r][v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) __builtin_prefetch(b + kAhead * b_row + v * V::N);
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) rows[g] += a_col;
    b += b_row;
  }

  const bool accumulate = t.accumulate;
  const T* const bias_row = t.bias_row;
  const T* const bias_col = t.bias_col;
  const int64_t c_row = t.c_row;
  T* c = t.c;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r, c += c_row) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      const int n = Masked && v == kLast ? lanes : V::N;
      V x = sum[r][v];
      if (accumulate) x += load_n(c + v * V::N, n);
      if (bias_row) x += V(bias_row[r]);
      if (bias_col) x += load_n(bias_col + v * V::N, n);
      store_n(c + v * V::N, x, n);
    }
  }
}

// The tiles of each width by their number of rows; a null where the sums would not fit.
template <class T>
using TileFn = void (*)(const TileArgs<T>&);
template <class T>
struct TileTable {
  TileFn<T> full[4][kRows];  // [log2 of the vectors][rows - 1]
  TileFn<T> masked[kRows];   // one vector, cut short
};
template <class T, int R, int NV>
constexpr TileFn<T> tile_if_fits() {
  if constexpr (R * NV <= kMaxSums && R >= 1) {
    return tile<T, R, NV, false>;
  } else {
    return nullptr;
  }
}
template <class T, int R>
constexpr void fill(TileTable<T>& t) {
  if constexpr (R >= 1) {
    t.full[0][R - 1] = tile_if_fits<T, R, 1>();
    t.full[1][R - 1] = tile_if_fits<T, R, 2>();
    t.full[2][R - 1] = tile_if_fits<T, R, 4>();
    t.full[3][R - 1] = tile_if_fits<T, R, 8>();
    t.masked[R - 1] = tile<T, R, 1, true>;
    fill<T, R - 1>(t);
  }
}
template <class T>
constexpr TileTable<T> make_tiles() {
  TileTable<T> t{};
  fill<T, kRows>(t);
  return t;
}
template <class T>
constexpr TileTable<T> tiles = make_tiles<T>();

// dst[p * stride + i] = src[i * lane + p], i < n <= V::N, p < k: squares of lanes, transposed in registers.
template <class T>
FASTNN_INLINE void pack_rows(const T* src, int64_t lane, int n, int64_t stride, int64_t k, T* dst) {
  using V = Vec<T>;
  for_each_vec<V>(k, [&](int64_t p, int steps) {
    V square[V::N];
#pragma GCC unroll 16
    for (int i = 0; i < V::N; ++i) square[i] = i < n ? load_n(src + i * lane + p, steps) : V(T(0));
    transpose(square);
    T* out = dst + p * stride;
#pragma GCC unroll 16
    for (int i = 0; i < V::N; ++i) {
      if (i < steps) store_n(out + i * stride, square[i], n);
    }
  });
}

// dst[p][i] = src[i * lane + p * step], i < width, p < k: one panel of A or of B.
template <class T>
void pack_panel(const T* src, int64_t lane, int64_t step, int64_t width, int64_t k, T* dst) {
  if (lane == 1) {
    for (int64_t p = 0; p < k; ++p, src += step, dst += width)
      for_each_vec<Vec<T>>(width, [&](int64_t i, int n) { store_n(dst + i, load_n(src + i, n), n); });
    return;
  }
  if (step == 1) {
    for_each_vec<Vec<T>>(width,
                         [&](int64_t i, int n) { pack_rows(src + i * lane, lane, n, width, k, dst + i); });
    return;
  }
  for (int64_t i = 0; i < width; ++i)
    for (int64_t p = 0; p < k; ++p) dst[p * width + i] = src[i * lane + p * step];
}

// Rows of B, cut into panels one after the other: reading along rows touches each page once.
template <class T>
void pack_b_rows(const GemmBlock<T>& g, int64_t width) {
  for (int64_t p = 0; p < g.k; ++p)
    for (int64_t j = 0; j < g.n; j += width) {
      const int64_t columns = g.n - j < width ? g.n - j : width;
      pack_panel(g.b + p * g.b_row + j, 1, 0, columns, 1, g.b_pack + j * g.k + p * columns);
    }
}

// Panels [first, last) of A, one after the other, into dst.
template <class T>
void pack_panels(const GemmBlock<T>& g, int64_t first, int64_t last, T* dst) {
  const int64_t begin = g.m * first / g.panels;
  if (g.a_row != 1) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = g.m * i / g.panels, rows = g.m * (i + 1) / g.panels - row;
      pack_panel(g.a + row * g.a_row, g.a_row, g.a_col, rows, g.k, dst + (row - begin) * g.k);
    }
    return;
  }
  // A by columns: a panel's part of one is shorter than a cache line may be, so they go together.
  for (int64_t p = 0; p < g.k; ++p)
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = g.m * i / g.panels, rows = g.m * (i + 1) / g.panels - row;
      pack_panel(g.a + row + p * g.a_col, 1, 0, rows, 1, dst + (row - begin) * g.k + p * rows);
    }
}

// One tile of C: the columns [j, j + width) of the block, in vectors of 8, 4, 2, 1 and a cut one.
template <class T>
FASTNN_INLINE void run_columns(TileArgs<T> t, int rows, int64_t width) {
  constexpr int kVec = Vec<T>::N;
  while (width > 0) {
    int level = width >= 8 * kVec ? 3 : width >= 4 * kVec ? 2 : width >= 2 * kVec ? 1 : 0;
    while (tiles<T>.full[level][rows - 1] == nullptr) --level;
    const int columns = kVec << level;
    if (width >= columns) {
      tiles<T>.full[level][rows - 1](t);
    } else {
      t.lanes = static_cast<int>(width);
      tiles<T>.masked[rows - 1](t);
    }
    width -= columns;
    t.b += columns;
    t.c += columns;
    if (t.bias_col) t.bias_col += columns;
  }
}

template <class T>
void block(const GemmBlock<T>& g) {
  constexpr int kNr = kCols * Vec<T>::N;
  // In place, a low block takes columns as wide as its registers allow.
  const int64_t width = g.b_pack == nullptr && g.panels == 1 ? 8 * Vec<T>::N : kNr;
  const bool pack_by_rows = g.b_pack && g.b_col == 1;
  if (pack_by_rows) pack_b_rows(g, width);
  int64_t first_row = 0;  // of a_pack
  for (int64_t i = 0; i < g.panels; ++i) {
    const int64_t row = g.m * i / g.panels;
    const int64_t rows = g.m * (i + 1) / g.panels - row;
    TileArgs<T> t{};
    t.k = g.k;
    t.c_row = g.c_row;
    t.accumulate = g.accumulate;
    t.bias_row = g.bias_row ? g.bias_row + row : nullptr;
    t.a = g.a + row * g.a_row;
    t.a_row = g.a_row;
    t.a_col = g.a_col;
    if (g.a_pack) {
      if (!g.a_packed && i % g.a_room == 0) {
        const int64_t last = i + g.a_room < g.panels ? i + g.a_room : g.panels;
        pack_panels(g, i, last, g.a_pack);
        first_row = row;
      }
      t.a = g.a_pack + (row - first_row) * g.k;
      t.a_row = 1;
      t.a_col = rows;
    }
    for (int64_t j = 0; j < g.n; j += width) {
      const int64_t columns = g.n - j < width ? g.n - j : width;
      t.b = g.b + j * g.b_col;
      t.b_row = g.b_row;
      if (g.b_pack) {
        T* packed = g.b_pack + j * g.k;
        if (i == 0 && !pack_by_rows) pack_panel(t.b, g.b_col, g.b_row, columns, g.k, packed);
        t.b = packed;
        t.b_row = columns;
      }
      t.c = g.c + row * g.c_row + j;
      t.bias_col = g.bias_col ? g.bias_col + j : nullptr;
      run_columns(t, static_cast<int>(rows), columns);
    }
  }
}

template <class T>
void pack_a(const GemmBlock<T>& g) {
  pack_panels(g, 0, g.panels, g.a_pack);
}

// R x NJ elements of C, each the sum over k of products of two contiguous vectors.
template <class T, int R, int NJ>
void dot_tile(const GemmBlock<T>& g, int64_t i, int64_t j) {
  using V = Vec<T>;
  V sum[R][NJ];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int c = 0; c < NJ; ++c) sum[r][c] = V(T(0));
  const T* a = g.a + i * g.a_row;
  const T* b = g.b + j * g.b_col;
  for_each_vec<V>(g.k, [&](int64_t p, int n) {
    V av[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) av[r] = load_n(a + r * g.a_row + p, n);
#pragma GCC unroll 16
    for (int c = 0; c < NJ; ++c) {
      const V bv = load_n(b + c * g.b_col + p, n);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r][c] = fma(av[r], bv, sum[r][c]);
    }
  });
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    T* out = g.c + (i + r) * g.c_row + j;
    V x = sum_lanes(sum[r]);
    if (g.accumulate) x += load(out, NJ);
    if (g.bias_row) x += V(g.bias_row[i + r]);
    if (g.bias_col) x += load(g.bias_col + j, NJ);
    store(out, x, NJ);
  }
}

// Columns of a dot tile: as many as leave room for the sums, a power of two, at most a register's lanes.
template <class T, int R>
constexpr int dot_columns() {
  int columns = 8;
  while (columns * R > kMaxSums || columns > Vec<T>::N) columns /= 2;
  return columns;
}

template <class T, int R>
void dot_rows(const GemmBlock<T>& g, int64_t i, int64_t j, int64_t columns) {
  constexpr int kWide = dot_columns<T, R>();
  for (; columns >= kWide; columns -= kWide, j += kWide) dot_tile<T, R, kWide>(g, i, j);
  for (; columns > 0; --columns, ++j) dot_tile<T, R, 1>(g, i, j);
}

template <class T>
void dot(const GemmBlock<T>& g) {
  constexpr int kGroup = 8;  // columns of B that stay in L1 while the rows of A pass
  constexpr int kHeight = kMaxSums >= 24 ? 4 : 3;
  const int64_t panels = (g.m + kHeight - 1) / kHeight;
  for (int64_t j = 0; j < g.n; j += kGroup) {
    const int64_t columns = g.n - j < kGroup ? g.n - j : kGroup;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t i = g.m * panel / panels;
      switch (g.m * (panel + 1) / panels - i) {
        case 1: dot_rows<T, 1>(g, i, j, columns); break;
        case 2: dot_rows<T, 2>(g, i, j, columns); break;
        case 3: dot_rows<T, 3>(g, i, j, columns); break;
        default: dot_rows<T, kHeight>(g, i, j, columns); break;
      }
    }
  }
}

template <class T>
constexpr GemmTypeKernels<T> kernels() {
  // A panel of B (k_block x nr) fills some two thirds of L1.
  return {GemmTile{kRows, kCols * Vec<T>::N, Vec<T>::N, static_cast<int>(1536 / sizeof(T))}, block<T>,
          pack_a<T>, dot<T>};
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const GemmKernels gemm;
const GemmKernels gemm = {kernels<float>(), kernels<double>()};
}  // namespace fastnn::cpu::FASTNN_ISA
