// Recurrent layers: products of a few rows with packed weights, and the cells.
//
// tile:  R rows by NV registers of sums stay in registers over k. Each register's column is a stream of its
// own, so
//        one packing serves every width: LSTM takes the four gates of a block of units side by side, GRU
//        three; lone rows take more blocks, since 8 chains of multiply-adds hide their latency.
// cells: read the sums from a buffer in L1, which costs 2% of the product, and leaves tiles and cells apart.
//
// Every sum is one chain of multiply-adds in the order of k, whatever tile it falls in: neither the threads'
// shares of rows and units nor a shrinking batch change a bit.
#include "cpu/kernels/rnn.h"

#include "cpu/simd/math.h"
#include "cpu/simd/transpose.h"

namespace {

using fastnn::rnn_blocks;
using fastnn::RnnCell;
using fastnn::cpu::rnn_register_stride;
using fastnn::cpu::RnnBackward;
using fastnn::cpu::RnnForward;
using fastnn::cpu::RnnMultiply;
using fastnn::cpu::RnnOps;
using fastnn::cpu::RnnPacking;
using fastnn::cpu::RnnPart;
using fastnn::cpu::RnnProduct;
using fastnn::cpu::RnnRows;

// Sums in registers, as in gemm.cpp.
#if defined(__AVX512F__)
constexpr int kMaxRows = 14, kMaxSums = 28;
#elif defined(__AVX2__)
constexpr int kMaxRows = 6, kMaxSums = 12;
#else
constexpr int kMaxRows = 4, kMaxSums = 8;
#endif
constexpr int kMaxRegisters = 8;  // side by side
constexpr int kAhead = 16;  // steps of a stream asked for ahead: the weights of a layer live in L2, or beyond

// --- products --------------------------------------------------------------------------------------------

// sums[r][v] = row r of A times the column of register v.
template <class T, int R, int NV>
void tile(const RnnProduct<T>& m, const T* a, const T* packed, T* sums) {
  using V = Vec<T>;
  V sum[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) sum[r][v] = V(T(0));

  // Every third row and stream has a pointer, as in gemm.cpp.
  constexpr int kRowGroups = (R + 2) / 3, kStreamGroups = (NV + 2) / 3;
  const int64_t a_row = m.a_row, stream = rnn_register_stride(m.k, V::N);
  const T* rows[kRowGroups];
  const T* streams[kStreamGroups];
#pragma GCC unroll 8
  for (int g = 0; g < kRowGroups; ++g) rows[g] = a + 3 * g * a_row;
#pragma GCC unroll 8
  for (int g = 0; g < kStreamGroups; ++g) streams[g] = packed + 3 * g * stream;
  int64_t p = 0;
  for (int64_t end = m.a_split;; end = m.k) {
    for (; p < end; ++p) {
      V w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) w[v] = load(streams[v / 3] + v % 3 * stream);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const V x(rows[r / 3][r % 3 * a_row]);
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[r][v] = fma(x, w[v], sum[r][v]);
      }
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) __builtin_prefetch(streams[v / 3] + v % 3 * stream + kAhead * V::N);
#pragma GCC unroll 8
      for (int g = 0; g < kStreamGroups; ++g) streams[g] += V::N;
#pragma GCC unroll 8
      for (int g = 0; g < kRowGroups; ++g) ++rows[g];
    }
    if (p == m.k) break;
#pragma GCC unroll 8
    for (int g = 0; g < kRowGroups; ++g) rows[g] += m.a_gap;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) store(sums + (r * NV + v) * V::N, sum[r][v]);
}

template <class T>
using TileFn = void (*)(const RnnProduct<T>&, const T* a, const T* packed, T* sums);
template <class T>
struct TileTable {
  TileFn<T> tiles[kMaxRegisters][kMaxRows];  // [registers - 1][rows - 1]; null where the sums would not fit
};
template <class T, int R, int NV>
constexpr void fill(TileTable<T>& t) {
  if constexpr (R > 0) {
    if constexpr (R * NV <= kMaxSums) t.tiles[NV - 1][R - 1] = tile<T, R, NV>;
    fill<T, R - 1, NV>(t);
  }
}
template <class T>
constexpr TileTable<T> make_tiles() {
  TileTable<T> t{};
  fill<T, kMaxRows, 1>(t);
  fill<T, kMaxRows, 2>(t);
  fill<T, kMaxRows, 3>(t);
  fill<T, kMaxRows, 4>(t);
  fill<T, kMaxRows, 6>(t);
  fill<T, kMaxRows, 8>(t);
  return t;
}
template <class T>
constexpr TileTable<T> kTiles = make_tiles<T>();

// Blocks of units that a tile takes at a time: those that leave room for all rows, but more than one register
// of sums.
template <int Gates>
int tile_blocks(int64_t rows, int64_t blocks) {
  int most = Gates == 1 ? 8 : 2;
  while (most > 1 && (most > blocks || (most * Gates * rows > kMaxSums && most * Gates > 2))) most /= 2;
  return most;
}

// f(row, j, lanes, sums) for each row and block of units of the part: sums + g * V::N are those of gate g.
template <int Gates, class T, class F>
FASTNN_INLINE void for_each_sum(const RnnPart<T>& part, const RnnProduct<T>& m, const F& f) {
  using V = Vec<T>;
  alignas(64) T sums[kMaxSums * V::N];
  if (m.a == nullptr) {
    for (int g = 0; g < Gates; ++g) store(sums + g * V::N, V(T(0)));
  }
  for (int64_t b = part.first, count; b < part.last; b += count) {
    count = tile_blocks<Gates>(part.rows, part.last - b);
    const int registers = static_cast<int>(count) * Gates;
    const int64_t height = kMaxSums / registers < kMaxRows ? kMaxSums / registers : kMaxRows;
    const int64_t panels = (part.rows + height - 1) / height;
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t row = part.rows * i / panels, rows = part.rows * (i + 1) / panels - row;
      if (m.a) {
        kTiles<T>.tiles[registers - 1][rows - 1](m, m.a + row * m.a_row,
                                                 m.packed + b * Gates * rnn_register_stride(m.k, V::N), sums);
      }
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t u = 0; u < count; ++u) {
          const int64_t j = (b + u) * V::N;
          const int lanes = part.H - j < V::N ? static_cast<int>(part.H - j) : V::N;
          f(row + r, j, lanes, m.a ? sums + (r * registers + u * Gates) * V::N : sums);
        }
    }
  }
}

// y[j * y_row + i] = x[i * x_row + j], j < columns: `rows` of x, followed by zeros up to `written` of each
// row of y.
template <class T>
FASTNN_INLINE void transpose_square(const T* x, int64_t x_row, int rows, int columns, T* y, int64_t y_row,
                                    int written) {
  using V = Vec<T>;
  V square[V::N];
#pragma GCC unroll 16
  for (int i = 0; i < V::N; ++i) square[i] = i < rows ? load_n(x + i * x_row, columns) : V(T(0));
  transpose(square);
#pragma GCC unroll 16
  for (int j = 0; j < V::N; ++j) {
    if (j < columns) store_n(y + j * y_row, square[j], written);
  }
}

template <class T>
void pack(const RnnPacking<T>& p) {
  using V = Vec<T>;
  const int64_t stream = rnn_register_stride(p.k, V::N);
  for (int64_t v = p.first; v < p.last; ++v) {
    const int64_t j = v / p.gates * V::N;
    const int n = p.H - j < V::N ? static_cast<int>(p.H - j) : V::N;
    const T* w = p.w + (v % p.gates * p.H + j) * p.column;
    T* out = p.packed + v * stream;
    if (p.column == 1) {
      for (int64_t i = 0; i < p.k; ++i) store(out + i * V::N, load_n(w + i * p.row, n));
      continue;
    }
    for_each_vec<V>(p.k, [&](int64_t i, int steps) {
      transpose_square(w + i, p.column, n, steps, out + i * V::N, V::N, V::N);
    });
  }
}

template <class T>
void transpose_rows(const T* x, int64_t row, int64_t columns, int64_t rows, T* y) {
  using V = Vec<T>;
  for_each_vec<V>(columns, [&](int64_t j, int width) {
    for_each_vec<V>(rows, [&](int64_t i, int height) {
      transpose_square(x + i * row + j, row, height, width, y + j * rows + i, rows, height);
    });
  });
}

// --- cells -----------------------------------------------------------------------------------------------

template <class T>
FASTNN_INLINE Vec<T> at(const RnnRows<T>& m, int64_t row, int64_t j, int lanes) {
  return load_n(m.data + row * m.row + j, lanes);
}
template <class T>
FASTNN_INLINE Vec<T> at(const RnnRows<const T>& m, int64_t row, int64_t j, int lanes) {
  return load_n(m.data + row * m.row + j, lanes);
}
template <class T>
FASTNN_INLINE Vec<T> at_or_zero(const RnnRows<const T>& m, int64_t row, int64_t j, int lanes) {
  return m.data ? at(m, row, j, lanes) : Vec<T>(T(0));
}
template <class T>
FASTNN_INLINE void put(const RnnRows<T>& m, int64_t row, int64_t j, int lanes, Vec<T> x) {
  store_n(m.data + row * m.row + j, x, lanes);
}

template <class T>
void multiply(const RnnMultiply<T>& s) {
  for_each_sum<1>(s.part, s.product, [&](int64_t row, int64_t j, int lanes, const T* sums) {
    put(s.y, row, j, lanes,
        load(sums) + at_or_zero(s.add, row, j, lanes) + at_or_zero(s.more, row, j, lanes));
  });
}

template <RnnCell cell, class T>
void forward(const RnnForward<T>& s) {
  using V = Vec<T>;
  const int64_t H = s.part.H;
  for_each_sum<rnn_blocks(cell).gates>(
      s.part, s.product, [&](int64_t row, int64_t j, int lanes, const T* sums) {
        const auto gate = [&](int g) { return load(sums + g * V::N) + at(s.gates, row, g * H + j, lanes); };
        if constexpr (cell == RnnCell::kTanh) {
          put(s.y, row, j, lanes, tanh_fine(gate(0)));
        } else if constexpr (cell == RnnCell::kRelu) {
          put(s.y, row, j, lanes, max(V(T(0)), gate(0)));  // the second operand keeps a NaN
        } else if constexpr (cell == RnnCell::kLstm) {
          const V i = sigmoid(gate(0)), f = sigmoid(gate(1)), g = tanh_fine(gate(2)), o = sigmoid(gate(3));
          const V c = fma(f, at_or_zero(s.c, row, j, lanes), i * g);
          put(s.gates, row, j, lanes, i);
          put(s.gates, row, H + j, lanes, f);
          put(s.gates, row, 2 * H + j, lanes, g);
          put(s.gates, row, 3 * H + j, lanes, o);
          put(s.gates, row, 4 * H + j, lanes, c);
          put(s.y, row, j, lanes, o * tanh_fine(c));
        } else {
          const V r = sigmoid(gate(0)), z = sigmoid(gate(1));
          const V hn = load(sums + 2 * V::N) + (s.b_hn ? load_n(s.b_hn + j, lanes) : V(T(0)));
          const V n = tanh_fine(fma(r, hn, at(s.gates, row, 2 * H + j, lanes)));
          put(s.gates, row, j, lanes, r);
          put(s.gates, row, H + j, lanes, z);
          put(s.gates, row, 2 * H + j, lanes, n);
          put(s.gates, row, 3 * H + j, lanes, hn);
          put(s.y, row, j, lanes, fma(z, at_or_zero(s.h, row, j, lanes) - n, n));
        }
      });
}

// x (1 - x), the slope of sigmoid at the gate x; 1 - x x that of tanh.
template <class V>
FASTNN_INLINE V sigmoid_slope(V x) {
  return fma(-x, x, x);
}
template <class V>
FASTNN_INLINE V tanh_slope(V x) {
  return fma(-x, x, V(typename V::Scalar(1)));
}

template <RnnCell cell, class T>
void backward(const RnnBackward<T>& s) {
  using V = Vec<T>;
  const int64_t H = s.part.H;
  for_each_sum<1>(s.part, s.product, [&](int64_t row, int64_t j, int lanes, const T* sums) {
    const V dh = load(sums) + at_or_zero(s.add, row, j, lanes) + at_or_zero(s.more, row, j, lanes);
    const auto kept = [&](int block) { return at(s.kept, row, block * H + j, lanes); };
    const auto slope = [&](int block, V x) { put(s.slopes, row, block * H + j, lanes, x); };
    if constexpr (cell == RnnCell::kTanh) {
      slope(0, dh * tanh_slope(kept(0)));
    } else if constexpr (cell == RnnCell::kRelu) {
      slope(0, select(kept(0) <= V(T(0)), V(T(0)), dh));  // a NaN lets pass, as torch's
    } else if constexpr (cell == RnnCell::kLstm) {
      const V i = kept(0), f = kept(1), g = kept(2), o = kept(3), t = tanh_fine(kept(4));
      const V dc = fma(dh * o, tanh_slope(t), at(s.dc, row, j, lanes));
      slope(0, dc * g * sigmoid_slope(i));
      slope(1, dc * at_or_zero(s.c, row, j, lanes) * sigmoid_slope(f));
      slope(2, dc * i * tanh_slope(g));
      slope(3, dh * t * sigmoid_slope(o));
      put(s.dc, row, j, lanes, dc * f);
      if (s.hidden.data) put(s.hidden, row, j, lanes, o * t);
    } else {
      const V r = kept(0), z = kept(1), n = kept(2), hn = kept(3);
      const V dn = (dh - dh * z) * tanh_slope(n);
      slope(0, dn * hn * sigmoid_slope(r));
      slope(1, dh * (at_or_zero(s.h, row, j, lanes) - n) * sigmoid_slope(z));
      slope(2, dn);
      slope(3, dn * r);
      put(s.dh, row, j, lanes, dh * z);
    }
  });
}

template <class T>
constexpr RnnOps<T> kOps = {Vec<T>::N,
                            pack<T>,
                            transpose_rows<T>,
                            multiply<T>,
                            {forward<RnnCell::kTanh, T>, forward<RnnCell::kRelu, T>,
                             forward<RnnCell::kLstm, T>, forward<RnnCell::kGru, T>},
                            {backward<RnnCell::kTanh, T>, backward<RnnCell::kRelu, T>,
                             backward<RnnCell::kLstm, T>, backward<RnnCell::kGru, T>}};

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const RnnKernels rnn;
const RnnKernels rnn = {kOps<float>, kOps<double>};
}  // namespace fastnn::cpu::FASTNN_ISA
