// Transforms of Winograd's F(4x4, 3x3) and of its weight gradient F(3x3, 4x4).
//
// Both multiply polynomials by their values at 0, a, -a, b, -b and infinity, with a = 1/sqrt(2), b = sqrt(2):
// the points of least rounding error for tiles of 4 (error about 2x that of direct sums; with 0, 1, 2: 4x).
// In one dimension, with M(t) = t (t^2 - a^2)(t^2 - b^2):
//   data      row p: coefficients of M(t) / (t - p);  infinity: of M
//   kernel    row p: (1, p, p^2, ..);                 infinity: (0, .., 0, 1)
//   outputs   row i: p^i / M'(p);                     infinity: 1 in the last row, else 0
// Two dimensions are one after the other. Rows for p and -p share their even and odd halves. Images have
// channels far apart and columns side by side, the transformed domain the reverse: rows of 4 x tiles columns
// are transposed into a strip in L1, square by square, and a column is transformed once for both tiles that
// share it.
// Lavin & Gray, arXiv:1509.09308; Barabasz et al., arXiv:1803.10986.
#include "cpu/kernels/winograd.h"

#include "cpu/simd/transpose.h"
#include "cpu/simd/vec.h"

namespace {

using fastnn::cpu::kWinogradPositions;
using fastnn::cpu::kWinogradRun;
using fastnn::cpu::kWinogradTile;
using fastnn::cpu::WinogradInput;
using fastnn::cpu::WinogradKernels;
using fastnn::cpu::WinogradOutput;
using fastnn::cpu::WinogradProduct;
using fastnn::cpu::WinogradWeight;
using fastnn::cpu::WinogradWeightGradient;

using V = Vec<float>;
constexpr int kLanes = V::N, kSide = 6, kTile = kWinogradTile, kTaps = 9;
static_assert(kSide * kSide == kWinogradPositions);
constexpr double kA = 0.70710678118654752440, kB = 1.41421356237309504880;
constexpr double kFactorA = -2.0 / 3, kFactorB = 1.0 / 6;  // 1 / M'(a), 1 / M'(b); M'(0) is 1

FASTNN_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
FASTNN_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : least(x, high);
}

// --- one dimension ---------------------------------------------------------------------------------------

struct Data {
  static constexpr int kIn = 6, kOut = 6;
  static FASTNN_INLINE void run(const V (&d)[kIn], V (&v)[kOut]) {
    const V even1 = fma(V(-2.0f), d[2], d[4]), odd1 = fma(V(-2.0f), d[1], d[3]);
    const V even2 = fma(V(-0.5f), d[2], d[4]), odd2 = fma(V(-0.5f), d[1], d[3]);
    v[0] = fma(V(-2.5f), d[2], d[0] + d[4]);
    v[1] = fma(V(kA), odd1, even1);
    v[2] = fma(V(-kA), odd1, even1);
    v[3] = fma(V(kB), odd2, even2);
    v[4] = fma(V(-kB), odd2, even2);
    v[5] = fma(V(-2.5f), d[3], d[1] + d[5]);
  }
};

struct Outputs {
  static constexpr int kIn = 6, kOut = 4;
  static FASTNN_INLINE void run(const V (&m)[kIn], V (&y)[kOut]) {
    const V even1 = m[1] + m[2], odd1 = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
    y[0] = fma(V(kFactorA), even1, fma(V(kFactorB), even2, m[0]));
    y[1] = fma(V(kFactorA * kA), odd1, V(kFactorB * kB) * odd2);
    y[2] = fma(V(kFactorA * 0.5f), even1, V(kFactorB * 2.0f) * even2);
    y[3] = fma(V(kFactorA * 0.5f * kA), odd1, fma(V(kFactorB * 2.0f * kB), odd2, m[5]));
  }
};

struct Kernel {
  static constexpr int kIn = 3, kOut = 6;
  static FASTNN_INLINE void run(const V (&g)[kIn], V (&u)[kOut]) {
    const V even1 = fma(V(0.5f), g[2], g[0]), even2 = fma(V(2.0f), g[2], g[0]);
    u[0] = g[0];
    u[1] = fma(V(kA), g[1], even1);
    u[2] = fma(V(-kA), g[1], even1);
    u[3] = fma(V(kB), g[1], even2);
    u[4] = fma(V(-kB), g[1], even2);
    u[5] = g[2];
  }
};

// Four values of dy in the place of a kernel.
struct Gradient {
  static constexpr int kIn = 4, kOut = 6;
  static FASTNN_INLINE void run(const V (&g)[kIn], V (&u)[kOut]) {
    const V even1 = fma(V(0.5f), g[2], g[0]), odd1 = fma(V(0.5f), g[3], g[1]);
    const V even2 = fma(V(2.0f), g[2], g[0]), odd2 = fma(V(2.0f), g[3], g[1]);
    u[0] = g[0];
    u[1] = fma(V(kA), odd1, even1);
    u[2] = fma(V(-kA), odd1, even1);
    u[3] = fma(V(kB), odd2, even2);
    u[4] = fma(V(-kB), odd2, even2);
    u[5] = g[3];
  }
};

struct WeightOutputs {
  static constexpr int kIn = 6, kOut = 3;
  static FASTNN_INLINE void run(const V (&m)[kIn], V (&y)[kOut]) {
    const V even1 = m[1] + m[2], odd1 = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
    y[0] = fma(V(kFactorA), even1, fma(V(kFactorB), even2, m[0]));
    y[1] = fma(V(kFactorA * kA), odd1, V(kFactorB * kB) * odd2);
    y[2] = fma(V(kFactorA * 0.5f), even1, fma(V(kFactorB * 2.0f), even2, m[5]));
  }
};

// --- two dimensions --------------------------------------------------------------------------------------

// put(i, j, value) for the transform of the values get(i, j).
template <class F, class Get, class Put>
FASTNN_INLINE void transform(const Get& get, const Put& put) {
  V half[F::kOut][F::kIn];
#pragma GCC unroll 6
  for (int j = 0; j < F::kIn; ++j) {
    V in[F::kIn], out[F::kOut];
#pragma GCC unroll 6
    for (int i = 0; i < F::kIn; ++i) in[i] = get(i, j);
    F::run(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < F::kOut; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < F::kOut; ++i) {
    V out[F::kOut];
    F::run(half[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < F::kOut; ++j) put(i, j, out[j]);
  }
}

// Rows of columns, each a register of channels.
template <int Rows, int Cols>
struct Strip {
  alignas(64) float values[Rows][Cols][kLanes];
};

// to[q] = the channels of column q < cols, from[i * plane + q]; `Whole` registers both ways, or channels and
// cols of them.
template <bool Whole>
FASTNN_INLINE void load_square(const float* from, int64_t plane, int channels, int cols,
                               float (*to)[kLanes]) {
  V square[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    square[i] = Whole ? load(from + i * plane) : i < channels ? load_n(from + i * plane, cols) : V(0.0f);
  }
  transpose(square);
#pragma GCC unroll 16
  for (int q = 0; q < kLanes; ++q) {
    if (Whole || q < cols) store(to[q], square[q]);
  }
}

template <bool Whole>
FASTNN_INLINE void store_square(const float (*from)[kLanes], int channels, int cols, float* to,
                                int64_t plane) {
  V square[kLanes];
#pragma GCC unroll 16
  for (int q = 0; q < kLanes; ++q) square[q] = Whole || q < cols ? load(from[q]) : V(0.0f);
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (Whole) {
      store(to + i * plane, square[i]);
    } else if (i < channels) {
      store_n(to + i * plane, square[i], cols);
    }
  }
}

// The same where columns lie apart as well, those of a dilated kernel: value by value.
FASTNN_INLINE void load_apart(const float* from, int64_t plane, int64_t pixel, int channels, int64_t cols,
                              float (*to)[kLanes]) {
  for (int64_t q = 0; q < cols && channels < kLanes; ++q) store(to[q], V(0.0f));
  for (int i = 0; i < channels; ++i)
    for (int64_t q = 0; q < cols; ++q) to[q][i] = from[i * plane + q * pixel];
}

FASTNN_INLINE void store_apart(const float (*from)[kLanes], int channels, int64_t cols, float* to,
                               int64_t plane, int64_t pixel) {
  for (int i = 0; i < channels; ++i)
    for (int64_t q = 0; q < cols; ++q) to[i * plane + q * pixel] = from[q][i];
}

// Columns [col, col + cols) of row `row` of one register of channels.
FASTNN_INLINE void load_row(const WinogradInput& p, const float* x, int64_t row, int64_t cols, int channels,
                            float (*to)[kLanes]) {
  const bool inside = row >= 0 && row < p.height;
  const int64_t first = inside ? clamp(-p.col, 0, cols) : cols, last = clamp(p.width - p.col, first, cols);
  for (int64_t q = 0; q < first; ++q) store(to[q], V(0.0f));
  const float* from = x + row * p.line + p.col * p.pixel;
  int64_t q = first;
  if (p.plane == 1) {
    for (; q < last; ++q) store(to[q], load_n(from + q * p.pixel, channels));
  } else if (p.pixel != 1) {
    load_apart(from + q * p.pixel, p.plane, p.pixel, channels, last - q, to + q);
    q = last;
  }
  for (; channels == kLanes && q + kLanes <= last; q += kLanes)
    load_square<true>(from + q, p.plane, kLanes, kLanes, to + q);
  for (; q < last; q += kLanes)
    load_square<false>(from + q, p.plane, channels, static_cast<int>(least(kLanes, last - q)), to + q);
  for (q = last; q < cols; ++q) store(to[q], V(0.0f));
}

template <class F>
void input(const WinogradInput& p) {
  constexpr int kShared = F::kIn - kTile;
  Strip<kSide, kWinogradRun * kTile + 2> strip;
  const int64_t cols = p.tiles * kTile + kShared;
  for (int64_t c = 0; c < p.channels; c += kLanes) {
    const int channels = static_cast<int>(least(kLanes, p.channels - c));
    for (int r = 0; r < F::kIn; ++r)
      load_row(p, p.x + c * p.plane, p.row + r, cols, channels, strip.values[r]);
    for (int64_t q = 0; q < cols; ++q) {
      V in[F::kIn], out[kSide];
#pragma GCC unroll 6
      for (int r = 0; r < F::kIn; ++r) in[r] = load(strip.values[r][q]);
      F::run(in, out);
#pragma GCC unroll 6
      for (int r = 0; r < kSide; ++r) store(strip.values[r][q], out[r]);
    }
    for (int r = 0; r < kSide; ++r) {
      float* v = p.v + r * kSide * p.v_position + c;
      for (int64_t t = 0; t < p.tiles; ++t, v += p.v_tile) {
        V in[F::kIn], out[kSide];
#pragma GCC unroll 6
        for (int j = 0; j < F::kIn; ++j) in[j] = load(strip.values[r][t * kTile + j]);
        F::run(in, out);
#pragma GCC unroll 6
        for (int j = 0; j < kSide; ++j) store(v + j * p.v_position, out[j]);
      }
    }
  }
}

// --- products --------------------------------------------------------------------------------------------

// Tiles x two registers of outputs stay in registers for a chain of kChain channels. The chains of one call
// are added up in L1 and go to m together: the error of a sum in three levels grows with the sum of their
// lengths, where that of one chain grows with their product. Torch's sums run over 16 channels, by 9 taps,
// and Winograd itself doubles the error.
#if defined(__AVX512F__)
constexpr int kRows = 14;
#elif defined(__AVX2__)
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif
constexpr int kChain = 8;
constexpr int kLine = 16;  // values in a line of the cache

template <int R, int NV>
void product_tile(const WinogradProduct& p, int64_t t) {
  // Every third row has a pointer, the two after it are one and two strides on, as in gemm.cpp.
  constexpr int kGroups = (R + 2) / 3;
  const float* rows[kGroups];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) rows[g] = p.v + (t + 3 * g) * p.v_tile;
  const float* u = p.u;
  const float* next = p.next + t / R * p.steps * kLine;
  const int64_t v_tile = p.v_tile;
  alignas(64) float total[R * NV * kLanes] = {};
  for (int64_t left = p.steps; left > 0; left -= kChain) {
    V sum[R][NV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int k = 0; k < NV; ++k) sum[r][k] = V(0.0f);
    }
    for (int64_t steps = least(left, kChain); steps > 0; --steps, u += NV * kLanes, next += kLine) {
      __builtin_prefetch(next);
      V b[NV];
#pragma GCC unroll 2
      for (int k = 0; k < NV; ++k) b[k] = load(u + k * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const V a(rows[r / 3][r % 3 * v_tile]);
#pragma GCC unroll 2
        for (int k = 0; k < NV; ++k) sum[r][k] = fma(a, b[k], sum[r][k]);
      }
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; ++g) ++rows[g];
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int k = 0; k < NV; ++k) {
        float* chains = total + (r * NV + k) * kLanes;
        store(chains, load(chains) + sum[r][k]);
      }
    }
  }
  float* m = p.m + t * NV * kLanes;
  for (int i = 0; i < R * NV * kLanes; i += kLanes)
    store(m + i, p.accumulate ? load(m + i) + load(total + i) : load(total + i));
}

template <int R, int NV>
void product_rows(const WinogradProduct& p, int64_t t, int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return product_rows<R - 1, NV>(p, t, rows);
  }
  product_tile<R, NV>(p, t);
}

template <int NV>
void product_vectors(const WinogradProduct& p) {
  const int64_t panels = (p.tiles + kRows - 1) / kRows;
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t t = p.tiles * i / panels;
    product_rows<kRows, NV>(p, t, p.tiles * (i + 1) / panels - t);
  }
}

void product(const WinogradProduct& p) {
  p.width == kLanes ? product_vectors<1>(p) : product_vectors<2>(p);
}

// --- outputs and weights ---------------------------------------------------------------------------------

bool output(const WinogradOutput& p) {
  Strip<kTile, kWinogradRun * kTile> strip;
  V poison(0.0f);  // NaN where anything was not finite
  for (int64_t c = 0; c < p.channels; c += kLanes) {
    const int channels = static_cast<int>(least(kLanes, p.channels - c));
    const V bias = p.bias == nullptr ? V(0.0f) : load_n(p.bias + c, channels);
    for (int64_t t = 0; t < p.tiles; ++t) {
      const float* m = p.m + t * p.m_tile + c;
      transform<Outputs>(
          [&](int i, int j)
              __attribute__((always_inline)) { return load(m + (i * kSide + j) * p.m_position); },
          [&](int i, int j, V y) __attribute__((always_inline)) {
            // Every position has a part in one of the corners.
            if (i % 3 == 0 && j % 3 == 0) poison = fma(y, V(0.0f), poison);
            store(strip.values[i][t * kTile + j], y + bias);
          });
    }
    for (int64_t r = 0; r < p.rows; ++r) {
      float* y = p.y + c * p.plane + r * p.line;
      int64_t q = 0;
      if (p.plane == 1) {
        for (; q < p.cols; ++q) store_n(y + q * p.pixel, load(strip.values[r][q]), channels);
      } else if (p.pixel != 1) {
        store_apart(strip.values[r], channels, p.cols, y, p.plane, p.pixel);
        q = p.cols;
      }
      for (; channels == kLanes && q + kLanes <= p.cols; q += kLanes)
        store_square<true>(strip.values[r] + q, kLanes, kLanes, y + q, p.plane);
      for (; q < p.cols; q += kLanes)
        store_square<false>(strip.values[r] + q, channels, static_cast<int>(least(kLanes, p.cols - q)), y + q,
                            p.plane);
    }
  }
  return !any(isnan(poison));
}

// taps[t][j] = value t of the kernels (i + j, o ..), for `ins` of them.
FASTNN_INLINE void load_kernels(const WinogradWeight& p, int64_t i, int ins, int64_t o,
                                Strip<kTaps, kLanes>& taps) {
  const float* w = p.w + i * p.in_stride + o * p.out_stride;
  const int outs = static_cast<int>(clamp(p.out - o, 0, kLanes));
  if (p.tap == 1) {
    Strip<1, kTaps + kLanes> values;
    for (int j = 0; j < ins; ++j, w += p.in_stride) {
      for (int t = 0; t < kTaps; t += kLanes)
        load_square<false>(w + t, p.out_stride, outs, static_cast<int>(least(kLanes, kTaps - t)),
                           values.values[0] + t);
      for (int t = 0; t < kTaps; ++t) store(taps.values[t][j], load(values.values[0][t]));
    }
    return;
  }
  for (int t = 0; t < kTaps; ++t, w += p.tap) {
    if (p.in_stride == 1) {
      load_square<false>(w, p.out_stride, outs, ins, taps.values[t]);
    } else {
      for (int j = 0; j < ins; ++j) store(taps.values[t][j], load_n(w + j * p.in_stride, outs));
    }
  }
}

void weight(const WinogradWeight& p) {
  Strip<kTaps, kLanes> taps;
  const int first = p.rotated ? kTaps - 1 : 0, step = p.rotated ? -1 : 1;
  for (int64_t o = 0; o < p.width; o += kLanes) {
    for (int64_t i = 0; i < p.in; i += kLanes) {
      const int ins = static_cast<int>(least(kLanes, p.in - i));
      load_kernels(p, i, ins, o, taps);
      for (int j = 0; j < ins; ++j) {
        float* u = p.u + (i + j) * p.width + o;
        transform<Kernel>(
            [&](int r, int s)
                __attribute__((always_inline)) { return load(taps.values[first + step * (3 * r + s)][j]); },
            [&](int r, int s, V value)
                __attribute__((always_inline)) { store(u + (r * kSide + s) * p.u_position, value); });
      }
    }
  }
}

bool weight_gradient(const WinogradWeightGradient& p) {
  Strip<1, kTaps + kLanes> strip;
  auto& taps = strip.values[0];
  V poison(0.0f);
  for (int64_t c = 0; c < p.channels; c += kLanes) {
    const int channels = static_cast<int>(least(kLanes, p.channels - c));
    const float* m = p.m + c;
    float* dw = p.dw + c * p.plane;
    if (!p.accumulate) {
      for (int t = 0; t < kTaps; ++t) store(taps[t], V(0.0f));
    } else if (p.plane == 1) {
      for (int t = 0; t < kTaps; ++t) store(taps[t], load_n(dw + t * p.tap, channels));
    } else {
      for (int t = 0; t < kTaps; t += kLanes)
        load_square<false>(dw + t, p.plane, channels, static_cast<int>(least(kLanes, kTaps - t)), taps + t);
    }
    transform<WeightOutputs>(
        [&](int i, int j) __attribute__((always_inline)) { return load(m + (i * kSide + j) * p.m_position); },
        [&](int i, int j, V y) __attribute__((always_inline)) {
          poison = fma(y, V(0.0f), poison);
          store(taps[3 * i + j], load(taps[3 * i + j]) + y);
        });
    if (p.plane == 1) {
      for (int t = 0; t < kTaps; ++t) store_n(dw + t * p.tap, load(taps[t]), channels);
      continue;
    }
    for (int t = 0; t < kTaps; t += kLanes)
      store_square<false>(taps + t, channels, static_cast<int>(least(kLanes, kTaps - t)), dw + t, p.plane);
  }
  return !any(isnan(poison));
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const WinogradKernels winograd;
constexpr WinogradKernels winograd = {kLanes,  kRows,  input<Data>, input<Gradient>,
                                      product, output, weight,      weight_gradient};
}  // namespace fastnn::cpu::FASTNN_ISA
