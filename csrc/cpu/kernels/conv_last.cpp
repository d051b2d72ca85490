// Register tiles of convolution with channels last.
//
// Pixels: R pixels x NV registers of output channels. A step broadcasts one value of each pixel and loads NV
// registers of weights: 28 sums in 32 registers, 12 in 16. Products: the same tile for the weight's
// gradient: R values of one operand x NV registers of the other, both contiguous in a pixel. Depthwise:
// registers of channels, several pixels at a time so that a weight is loaded once for them.
//
// A tile's sums are one chain over its steps, in their order, whatever tile a pixel falls in.
#include "cpu/kernels/conv_last.h"

#include "cpu/simd/transpose.h"
#include "cpu/simd/vec.h"

namespace {

using fastnn::cpu::ConvDepthwise;
using fastnn::cpu::ConvDepthwiseWeight;
using fastnn::cpu::ConvLastKernelsOf;
using fastnn::cpu::ConvPixels;
using fastnn::cpu::ConvProducts;
using fastnn::cpu::ConvTapAt;

// Sums in registers. One register of weights: more rows than loads could feed are of no use.
#if defined(__AVX512F__)
constexpr int kMaxSums = 28, kMaxHeight = 14;
#elif defined(__AVX2__)
constexpr int kMaxSums = 12, kMaxHeight = 12;
#else
constexpr int kMaxSums = 8, kMaxHeight = 8;  // products need registers too
#endif
constexpr int kMaxVectors = 4;
constexpr int max_height(int vectors) {
  return kMaxSums / vectors < kMaxHeight ? kMaxSums / vectors : kMaxHeight;
}

FASTNN_INLINE int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The functions of all tiles that fit the registers, by their number of vectors and height.
template <class Args, template <int, int> class Tile>
struct TileTable {
  using Fn = void (*)(const Args&);
  Fn fn[kMaxVectors][kMaxHeight];
};
template <class Args, template <int, int> class Tile, int R, int NV>
constexpr void fill(TileTable<Args, Tile>& t) {
  if constexpr (NV <= kMaxVectors) {
    if constexpr (R <= max_height(NV)) {
      t.fn[NV - 1][R - 1] = Tile<R, NV>::run;
      fill<Args, Tile, R + 1, NV>(t);
    } else {
      fill<Args, Tile, 1, NV + 1>(t);
    }
  }
}
template <class Args, template <int, int> class Tile>
constexpr TileTable<Args, Tile> make_tiles() {
  TileTable<Args, Tile> t{};
  fill<Args, Tile, 1, 1>(t);
  return t;
}

// Every third row of a tile has a pointer, the two after it are one and two strides on: addresses that x86
// forms for nothing, where 14 pointers would not fit its registers.
constexpr int pointers(int rows) {
  return (rows + 2) / 3;
}

template <class T>
struct PixelTile {
  template <int R, int NV>
  struct At {
    static void run(const ConvPixels<T>& p) {
      using V = Vec<T>;
      constexpr int kLast = NV - 1, kPointers = pointers(R);
      const int last = p.last;
      V sum[R][NV];
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[r][v] = V(T(0));
      const int64_t x_col = p.x_col;
      const T* w = p.w;
      constexpr int64_t kLine = 64 / sizeof(T);
      const T* ahead = p.x + (p.stream ? R * x_col + p.ahead * kLine : 0);
      const int64_t ahead_step = p.stream ? kLine : 0;
      for (int64_t i = 0; i < p.run_count; ++i) {
        const T* rows[kPointers];
#pragma GCC unroll 5
        for (int g = 0; g < kPointers; ++g) rows[g] = p.x + p.runs[i].offset + 3 * g * x_col;
        for (int64_t s = p.runs[i].length; s > 0; --s) {
          V b[NV];
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) b[v] = load(w + v * V::N);
#pragma GCC unroll 14
          for (int r = 0; r < R; ++r) {
            const V value(rows[r / 3][r % 3 * x_col]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) sum[r][v] = fma(value, b[v], sum[r][v]);
          }
#pragma GCC unroll 5
          for (int g = 0; g < kPointers; ++g) ++rows[g];
          __builtin_prefetch(ahead);
          ahead += ahead_step;
          w += NV * V::N;
        }
      }
      const int64_t y_col = p.y_col;
      T* y = p.y;
      if (p.accumulate) {
#pragma GCC unroll 14
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v)
            sum[r][v] += load_n(y + r * y_col + v * V::N, v == kLast ? last : V::N);
      } else if (p.bias != nullptr) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const V bias = load_n(p.bias + v * V::N, v == kLast ? last : V::N);
#pragma GCC unroll 14
          for (int r = 0; r < R; ++r) sum[r][v] += bias;
        }
      }
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store_n(y + r * y_col + v * V::N, sum[r][v], v == kLast ? last : V::N);
      }
    }
  };
};

template <class T>
constexpr TileTable<ConvPixels<T>, PixelTile<T>::template At> pixel_tiles =
    make_tiles<ConvPixels<T>, PixelTile<T>::template At>();

// Tiles of nearly equal height.
template <class T>
void pixels(const ConvPixels<T>& p) {
  const int64_t height = max_height(p.vectors), tiles = (p.pixels + height - 1) / height;
  ConvPixels<T> tile = p;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = p.pixels * i / tiles;
    tile.pixels = p.pixels * (i + 1) / tiles - first;
    tile.x = p.x + first * p.x_col;
    tile.y = p.y + first * p.y_col;
    pixel_tiles<T>.fn[p.vectors - 1][tile.pixels - 1](tile);
  }
}

template <class T>
struct ProductTile {
  template <int R, int NV>
  struct At {
    static void run(const ConvProducts<T>& p) { p.last == Vec<T>::N ? sums<false>(p) : sums<true>(p); }

    template <bool Masked>
    static FASTNN_INLINE void sums(const ConvProducts<T>& p) {
      using V = Vec<T>;
      constexpr int kLast = NV - 1;
      const int last = p.last;
      const int64_t a_col = p.a_col, b_col = p.b_col, ahead_step = p.ahead_step;
      const T* ahead = p.ahead;
      V sum[R][NV];
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[r][v] = V(T(0));
      for (int64_t i = 0; i < p.images; ++i) {
        for (int64_t row = 0; row < p.rows; ++row) {
          const T* a = p.a + i * p.a_image + row * p.a_row;
          const T* b = p.b + i * p.b_image + row * p.b_row;
          for (int64_t q = p.cols; q > 0; --q, a += a_col, b += b_col) {
            __builtin_prefetch(ahead);
            ahead += ahead_step;
            V bv[NV];
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v)
              bv[v] = Masked && v == kLast ? load(b + v * V::N, last) : load(b + v * V::N);
#pragma GCC unroll 14
            for (int r = 0; r < R; ++r) {
              const V value(a[r]);
#pragma GCC unroll 4
              for (int v = 0; v < NV; ++v) sum[r][v] = fma(value, bv[v], sum[r][v]);
            }
          }
        }
      }
#pragma GCC unroll 14
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          T* acc = p.acc + r * p.acc_row + v * V::N;
          const int n = Masked && v == kLast ? last : V::N;
          store_n(acc, load_n(acc, n) + sum[r][v], n);
        }
      }
    }
  };
};

template <class T>
constexpr TileTable<ConvProducts<T>, ProductTile<T>::template At> product_tiles =
    make_tiles<ConvProducts<T>, ProductTile<T>::template At>();

template <class T>
void products(const ConvProducts<T>& p) {
  product_tiles<T>.fn[p.vectors - 1][p.height - 1](p);
}

// Pixels of a depthwise tile: many, for a weight is loaded and an offset looked up once for all of them.
constexpr int kDepthPixels = 8;

template <class T, int R>
FASTNN_INLINE void depthwise_tile(const ConvDepthwise<T>& p, const T* x, T* y) {
  using V = Vec<T>;
  for_each_vec<V>(p.channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    const V start = p.bias != nullptr ? load_n(p.bias + c, lanes) : V(T(0));
    V sum[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r] = start;
    for (int64_t t = 0; t < p.tap_count; ++t) {
      const V w = load_n(p.w + p.taps[t].w + c, lanes);
      const T* xt = x + p.taps[t].x + c;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r] = fma(load_n(xt + r * p.x_col, lanes), w, sum[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store_n(y + r * p.y_col + c, sum[r], lanes);
  });
}

template <class T, int R>
FASTNN_INLINE void depthwise_tiles(const ConvDepthwise<T>& p, int64_t i) {
  for (; i + R <= p.pixels; i += R) depthwise_tile<T, R>(p, p.x + i * p.x_col, p.y + i * p.y_col);
  if constexpr (R > 1) depthwise_tiles<T, R / 2>(p, i);
}

template <class T>
void depthwise(const ConvDepthwise<T>& p) {
  depthwise_tiles<T, kDepthPixels>(p, 0);
}

// Taps whose sums a register each holds while dy passes; pixels between two visits to memory.
constexpr int kDepthTaps = 9;
constexpr int64_t kDepthChain = 16;

template <class T, int Taps>
FASTNN_INLINE void depthwise_sums(const ConvDepthwiseWeight<T>& p, const ConvTapAt* taps, const T* x,
                                  const T* dy, int64_t pixels, int lanes, T* dw) {
  using V = Vec<T>;
  V sum[Taps];
#pragma GCC unroll 9
  for (int t = 0; t < Taps; ++t) sum[t] = load_n(dw + taps[t].w, lanes);
  for (; pixels > 0; --pixels, x += p.x_col, dy += p.channels) {
    const V d = load_n(dy, lanes);
#pragma GCC unroll 9
    for (int t = 0; t < Taps; ++t) sum[t] = fma(load_n(x + taps[t].x, lanes), d, sum[t]);
  }
#pragma GCC unroll 9
  for (int t = 0; t < Taps; ++t) store_n(dw + taps[t].w, sum[t], lanes);
}

template <class T, int Taps>
void depthwise_taps(const ConvDepthwiseWeight<T>& p, const ConvTapAt* taps, int64_t count) {
  if constexpr (Taps > 1) {
    if (count < Taps) return depthwise_taps<T, Taps - 1>(p, taps, count);
  }
  for (int64_t i = 0; i < p.pixels; i += kDepthChain) {
    const int64_t pixels = least(kDepthChain, p.pixels - i);
    for_each_vec<Vec<T>>(p.channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      depthwise_sums<T, Taps>(p, taps, p.x + i * p.x_col + c, p.dy + i * p.channels + c, pixels, lanes,
                              p.dw + c);
    });
  }
}

template <class T>
void depthwise_weight(const ConvDepthwiseWeight<T>& p) {
  for (int64_t t = 0; t < p.tap_count; t += kDepthTaps)
    depthwise_taps<T, kDepthTaps>(p, p.taps + t, least(kDepthTaps, p.tap_count - t));
}

template <class T>
void transpose(const T* src, int64_t src_row, int64_t rows, int64_t cols, T* dst, int64_t dst_row) {
  using V = Vec<T>;
  for_each_vec<V>(rows, [&](int64_t i, int n) {
    for_each_vec<V>(cols, [&](int64_t j, int count) {
      V square[V::N];
      const T* from = src + i * src_row + j;
      T* to = dst + j * dst_row + i;
#pragma GCC unroll 16
      for (int l = 0; l < V::N; ++l) square[l] = l < n ? load_n(from + l * src_row, count) : V(T(0));
      transpose(square);
#pragma GCC unroll 16
      for (int l = 0; l < V::N; ++l) {
        if (l < count) store_n(to + l * dst_row, square[l], n);
      }
    });
  });
}

// Whole rows of registers, the last of them filled up with zeros.
template <class T>
void pack(const T* src, int64_t step, int64_t lane, int64_t steps, int64_t width, T* dst, int64_t ld) {
  using V = Vec<T>;
  if (step == 1 && lane != 1) {
    for (int64_t s = 0; s < steps && width < ld; ++s) {
      for (int64_t j = width; j < ld; ++j) dst[s * ld + j] = T(0);
    }
    return transpose(src, lane, width, steps, dst, ld);
  }
  for (int64_t s = 0; s < steps; ++s) {
    for_each_vec<V>(width, [&](int64_t j, int n) {
      if (lane == 1) {
        store(dst + s * ld + j, load_n(src + s * step + j, n));
      } else {
        for (int l = 0; l < V::N; ++l) dst[s * ld + j + l] = l < n ? src[s * step + (j + l) * lane] : T(0);
      }
    });
  }
}

template <class T>
void sum(const T* src, int64_t pixels, int64_t channels, T* sums) {
  using V = Vec<T>;
  for_each_vec<V>(channels, [&](int64_t c, int lanes) {
    V a = load_n(sums + c, lanes), b(T(0));
    int64_t i = 0;
    for (; i + 2 <= pixels; i += 2) {
      a += load_n(src + i * channels + c, lanes);
      b += load_n(src + (i + 1) * channels + c, lanes);
    }
    if (i < pixels) a += load_n(src + i * channels + c, lanes);
    store_n(sums + c, a + b, lanes);
  });
}

template <class T>
constexpr ConvLastKernelsOf<T> kernels_of() {
  return {Vec<T>::N,    kMaxVectors,         max_height, pixels<T>,    products<T>,
          depthwise<T>, depthwise_weight<T>, pack<T>,    transpose<T>, sum<T>};
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const ConvLastKernels conv_last;
constexpr ConvLastKernels conv_last = {kernels_of<float>(), kernels_of<double>()};
}  // namespace fastnn::cpu::FASTNN_ISA
