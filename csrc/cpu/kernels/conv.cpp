// Register tiles of convolution.
//
// Panel: MR output channels x NV registers of output columns. A step broadcasts MR weights and loads NV
// registers of the input; with 32 registers 12 x 2, 8 x 3 or 6 x 4 sums cover the latency of the
// multiply-adds, with 16 registers 6 x 2 or 4 x 3. Few rows get more columns. Sums run over all steps in
// registers, in one order. Outer: 6 (channel, tap) rows x registers of output channels; broadcasts the input,
// loads the transposed dy. Dot: both operands along output columns, lanes added up at the end; for depthwise
// and first layers.
#include "cpu/kernels/conv.h"

#include "cpu/simd/vec.h"

namespace {

using fastnn::cpu::ConvDot;
using fastnn::cpu::ConvKernelsOf;
using fastnn::cpu::ConvOuter;
using fastnn::cpu::ConvPanel;

#if defined(__AVX512F__)
constexpr int kMaxRows = 12, kOuterVectors = 4, kDotRows = 4;
constexpr int tile_vectors(int rows) {
  return rows > 8 ? 2 : rows > 6 ? 3 : 4;
}
constexpr int tile_rows(int rows) {
  return rows > 8 ? 12 : rows > 6 ? 8 : rows > 4 ? 6 : rows > 2 ? 4 : rows;
}
#else
constexpr int kMaxRows = 6, kOuterVectors = 2, kDotRows = 2;
constexpr int tile_vectors(int rows) {
  return rows > 4 ? 2 : rows > 2 ? 3 : 4;
}
constexpr int tile_rows(int rows) {
  return rows > 4 ? 6 : rows > 2 ? 4 : rows;
}
#endif
constexpr int kMaxVectors = 4;
constexpr int kOuterRows = 6, kDotSteps = 6;
// Terms that a sum adds in one chain. Chains are added up apart, so that the rounding error does not grow
// with the number of terms: torch's sums by matrix product, then by kernel tap, are that good.
constexpr int64_t chain(int64_t terms) {
  return terms < 512 ? 32 : 64;
}

// Lanes from <= l < to of v, to p + l.
template <class T>
FASTNN_INLINE void store_range(T* p, Vec<T> v, int from, int to) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << to) - (1u << from);
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), (__m512)v.v);
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), (__m512d)v.v);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    _mm256_maskstore_ps(p, _mm256_andnot_si256(lanes_below(from), lanes_below(to)), (__m256)v.v);
  } else {
    _mm256_maskstore_pd(p, _mm256_andnot_si256(lanes_below_pd(from), lanes_below_pd(to)), (__m256d)v.v);
  }
#else
  for (int l = from; l < to; ++l) p[l] = v.v[l];
#endif
}

FASTNN_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Where a flat column lies.
struct Position {
  int64_t row, col;
  FASTNN_INLINE void advance(int64_t n, int64_t pitch) {
    col += n;
    while (col >= pitch) col -= pitch, ++row;
  }
};

// Stores one register per row i < rows: the flat columns from `at` on, `lanes` of them.
template <class T, int MR, int NV>
FASTNN_INLINE void store_column(const ConvPanel<T>& p, const Vec<T> (&acc)[MR][NV], int v, Position at,
                                int lanes) {
  constexpr int N = Vec<T>::N;
  for (int lane = 0; lane < lanes;) {
    if (at.col >= p.width) {
      const int64_t gap = p.pitch - at.col;
      lane += static_cast<int>(least(gap, N));
      at.advance(gap, p.pitch);
      continue;
    }
    const int n = static_cast<int>(least(lanes - lane, p.width - at.col));
    T* y = p.y + at.row * p.y_row + at.col * p.y_col;
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) {
      if (i >= p.rows) break;
      T* yi = y + i * p.y_channel;
      if (p.y_col != 1) {
        T values[N];
        store(values, acc[i][v]);
        for (int l = 0; l < n; ++l) yi[l * p.y_col] = values[lane + l];
      } else if (n == N) {
        store(yi, acc[i][v]);
      } else {
        store_range(yi - lane, acc[i][v], lane, lane + n);
      }
    }
    lane += n;
    at.advance(n, p.pitch);
  }
}

// Adds steps [first, last) in one chain per sum.
template <class T, int MR, int NV>
FASTNN_INLINE void add_steps(const ConvPanel<T>& p, int64_t j, int64_t first, int64_t last,
                             Vec<T> (&acc)[MR][NV]) {
  using V = Vec<T>;
  const T* x = p.x + j;
  const T* a = p.a + first * MR;
  for (int64_t s = first; s < last; ++s, a += MR) {
    const T* row = x + p.offset[s];
    V b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) b[v] = load(row + v * V::N);
#pragma GCC unroll 12
    for (int i = 0; i < MR; ++i) {
      const V weight(a[i]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = fma(weight, b[v], acc[i][v]);
    }
  }
}

template <class T, int MR, int NV>
FASTNN_INLINE void tile(const ConvPanel<T>& p, int64_t j, Position at) {
  using V = Vec<T>;
  V acc[MR][NV];
#pragma GCC unroll 12
  for (int i = 0; i < MR; ++i) {
    const V start(p.bias != nullptr && i < p.rows ? p.bias[i] : T(0));
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[i][v] = start;
  }
  if (p.steps <= 64) {
    add_steps<T, MR, NV>(p, j, 0, p.steps, acc);
  } else {
    V total[MR][NV];  // in memory: all registers are taken
    __builtin_memcpy(total, acc, sizeof total);
    const int64_t length = chain(p.steps);
    for (int64_t first = 0; first < p.steps; first += length) {
#pragma GCC unroll 12
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[i][v] = V(T(0));
      }
      add_steps<T, MR, NV>(p, j, first, least(first + length, p.steps), acc);
#pragma GCC unroll 12
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) total[i][v] += acc[i][v];
      }
    }
    __builtin_memcpy(acc, total, sizeof acc);
  }
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const int lanes = static_cast<int>(least(V::N, p.cols - j - v * V::N));
    store_column<T, MR, NV>(p, acc, v, at, lanes);
    at.advance(V::N, p.pitch);
  }
}

template <class T, int MR, int NV>
__attribute__((noinline)) void last_tile(const ConvPanel<T>& p, int64_t j, int64_t vectors) {
  if constexpr (NV > 1) {
    if (vectors < NV) return last_tile<T, MR, NV - 1>(p, j, vectors);
  }
  // Columns that were computed before are computed again, to the same bits, rather than read past the end.
  if (p.exact) j = p.cols - NV * Vec<T>::N;
  tile<T, MR, NV>(p, j, {j / p.pitch, j % p.pitch});
}

template <class T, int MR>
void panel_rows(const ConvPanel<T>& p) {
  constexpr int NV = tile_vectors(MR), kCols = NV * Vec<T>::N;
  Position at{0, 0};
  int64_t j = 0;
  for (; j + kCols <= p.cols; j += kCols) {
    tile<T, MR, NV>(p, j, at);
    at.advance(kCols, p.pitch);
  }
  if (j < p.cols) last_tile<T, MR, NV>(p, j, (p.cols - j + Vec<T>::N - 1) / Vec<T>::N);
}

template <class T>
void panel(const ConvPanel<T>& p) {
  switch (tile_rows(p.rows)) {
    case 1: return panel_rows<T, 1>(p);
    case 2: return panel_rows<T, 2>(p);
    case 4: return panel_rows<T, 4>(p);
    case 6: return panel_rows<T, 6>(p);
#if defined(__AVX512F__)
    case 8: return panel_rows<T, 8>(p);
    default: return panel_rows<T, 12>(p);
#endif
  }
}

template <class T, int NV>
void outer_vectors(const ConvOuter<T>& p) {
  using V = Vec<T>;
  constexpr int MR = kOuterRows;
  for (int64_t s = 0; s < p.steps; s += MR) {
    const int count = static_cast<int>(least(MR, p.steps - s));
    const T* x[MR];
    V acc[MR][NV];
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      const int64_t step = s + (i < count ? i : 0);
      x[i] = p.x + p.offset[step];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] = V(T(0));
    }
    const T* dy = p.dy;
    for (int64_t r = 0; r < p.rows; ++r) {
      for (int64_t q = 0; q < p.cols; ++q, dy += NV * V::N) {
        V b[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) b[v] = load(dy + v * V::N);
#pragma GCC unroll 6
        for (int i = 0; i < MR; ++i) {
          const V value(x[i][q]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[i][v] = fma(value, b[v], acc[i][v]);
        }
      }
#pragma GCC unroll 6
      for (int i = 0; i < MR; ++i) x[i] += p.x_row;
    }
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      if (i >= count) break;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        T* sum = p.acc + (s + i) * p.acc_row + v * V::N;
        store(sum, load(sum) + acc[i][v]);
      }
    }
  }
}

template <class T>
void outer(const ConvOuter<T>& p) {
  switch (p.vectors) {
    case 1: return outer_vectors<T, 1>(p);
    case 2: return outer_vectors<T, 2>(p);
#if defined(__AVX512F__)
    case 3: return outer_vectors<T, 3>(p);
    case 4: return outer_vectors<T, 4>(p);
#endif
  }
}

// MK channels of dy from k on, NS steps from s on.
template <class T, int MK, int NS>
void dot_tile(const ConvDot<T>& p, int64_t k, int64_t s) {
  using V = Vec<T>;
  V acc[MK][NS];
#pragma GCC unroll 4
  for (int i = 0; i < MK; ++i) {
#pragma GCC unroll 6
    for (int j = 0; j < NS; ++j) acc[i][j] = V(T(0));
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    const T* dy = p.dy + k * p.dy_channel + r * p.dy_row;
    const T* x = p.x + r * p.x_row;
    for_each_vec<V>(p.cols, [&](int64_t q, int lanes) __attribute__((always_inline)) {
      V a[MK];
#pragma GCC unroll 4
      for (int i = 0; i < MK; ++i) a[i] = load_n(dy + i * p.dy_channel + q, lanes);
#pragma GCC unroll 6
      for (int j = 0; j < NS; ++j) {
        const V b = load_n(x + p.offset[s + j] + q, lanes);
#pragma GCC unroll 4
        for (int i = 0; i < MK; ++i) acc[i][j] = fma(a[i], b, acc[i][j]);
      }
    });
  }
#pragma GCC unroll 6
  for (int j = 0; j < NS; ++j) {
#pragma GCC unroll 4
    for (int i = 0; i < MK; ++i) p.acc[(s + j) * p.acc_row + k + i] += reduce_add(acc[i][j]);
  }
}

template <class T, int MK, int NS>
void dot_steps(const ConvDot<T>& p, int64_t k, int64_t s) {
  if constexpr (NS > 1) {
    if (p.steps - s < NS) return dot_steps<T, MK, NS - 1>(p, k, s);
  }
  dot_tile<T, MK, NS>(p, k, s);
}

template <class T>
void dot(const ConvDot<T>& p) {
  for (int64_t s = 0; s < p.steps; s += kDotSteps) {
    int64_t k = 0;
    for (; k + kDotRows <= p.channels; k += kDotRows) dot_steps<T, kDotRows, kDotSteps>(p, k, s);
    for (; k < p.channels; ++k) dot_steps<T, 1, kDotSteps>(p, k, s);
  }
}

template <class T>
void transpose(const T* src, int64_t src_channel, int64_t channels, int64_t cols, T* dst, int64_t ld) {
  // Squares that stay in L1 whatever the stride.
  constexpr int64_t kBlock = 16;
  for (int64_t p0 = 0; p0 < cols; p0 += kBlock) {
    const int64_t p1 = least(cols, p0 + kBlock);
    for (int64_t k = 0; k < channels; ++k) {
      for (int64_t p = p0; p < p1; ++p) dst[p * ld + k] = src[k * src_channel + p];
    }
    for (int64_t p = p0; p < p1; ++p) {
      for (int64_t k = channels; k < ld; ++k) dst[p * ld + k] = T(0);
    }
  }
}

template <class T>
void copy(const T* src, int64_t step, T* dst, int64_t n) {
  if (step == 2) {  // a constant stride becomes shuffles
    for (int64_t j = 0; j < n; ++j) dst[j] = src[j * 2];
    return;
  }
  if (step != 1) {
    for (int64_t j = 0; j < n; ++j) dst[j] = src[j * step];
    return;
  }
  for_each_vec<Vec<T>>(n, [&](int64_t j, int lanes) { store_n(dst + j, load_n(src + j, lanes), lanes); });
}

// Four interleaved sums, lanes folded at the end.
template <class T>
T sum(const T* src, int64_t n) {
  using V = Vec<T>;
  V acc[4] = {V(T(0)), V(T(0)), V(T(0)), V(T(0))};
  int64_t j = 0;
  for (; j + 4 * V::N <= n; j += 4 * V::N) {
    for (int v = 0; v < 4; ++v) acc[v] += load(src + j + v * V::N);
  }
  for_each_vec<V>(n - j, [&](int64_t i, int lanes) { acc[0] += load_n(src + j + i, lanes); });
  return reduce_add((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

template <class T>
constexpr ConvKernelsOf<T> kernels_of() {
  return {Vec<T>::N,     kMaxRows,  kMaxVectors * Vec<T>::N,
          kOuterVectors, tile_rows, panel<T>,
          outer<T>,      dot<T>,    transpose<T>,
          copy<T>,       sum<T>};
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const ConvKernels conv;
constexpr ConvKernels conv = {kernels_of<float>(), kernels_of<double>()};
}  // namespace fastnn::cpu::FASTNN_ISA
