// Inner loops of convolution with channels last: x[pixel, c]. A pixel's channels are contiguous, so nothing
// is rearranged but the weights; registers hold output channels.
#pragma once
#include <cstdint>

#include "cpu/capability.h"

namespace fastnn::cpu {

// `length` values of x in a row, `offset` from the first tap of a pixel: the channels of one tap, or of
// several neighbouring ones.
struct ConvRun {
  int64_t offset, length;
};

// y[p, j] = (accumulate ? y[p, j] : bias[j]) + sum over steps s of x[p, s] * w[s, j], the steps being the
// values of all runs one after the other.
template <class T>
struct ConvPixels {
  const T* x;  // the first tap of pixel p at x + p * x_col
  int64_t x_col;
  const ConvRun* runs;
  int64_t run_count;
  const T* w;     // [steps, vectors * lanes], zero-filled beyond the last channel
  const T* bias;  // [channels] or null
  int vectors;    // at most max_vectors
  int last;       // channels in the last vector
  bool accumulate;
  // One tap over pixels side by side is bound by memory: each step asks for a line of the next tile's pixels,
  // beginning with line `ahead`.
  bool stream;
  int64_t ahead;
  int64_t pixels;
  T* y;  // pixel p at y + p * y_col
  int64_t y_col;
};

// acc[i, j] += sum over images, rows, cols of a[i] * b[j], i < height.
template <class T>
struct ConvProducts {
  int64_t images, rows, cols;
  const T* a;
  int64_t a_image, a_row, a_col;
  const T* b;
  int64_t b_image, b_row, b_col;
  int height, vectors, last;  // vectors of b, its values in the last one
  // Each position asks for a line of what is read next, from `ahead` on, `ahead_step` values apart (or 0).
  const T* ahead;
  int64_t ahead_step;
  T* acc;
  int64_t acc_row;
};

// Depthwise: a tap reads x of the same channel, `x` from that of the first.
struct ConvTapAt {
  int64_t x, w;
};

// y[p, c] = bias[c] + sum over taps of x[p, c] * w[c].
template <class T>
struct ConvDepthwise {
  const T* x;
  int64_t x_col;
  const ConvTapAt* taps;
  int64_t tap_count;
  const T* w;     // [all taps, channels]
  const T* bias;  // [channels] or null
  int64_t channels, pixels;
  T* y;
  int64_t y_col;
};

// dw[tap, c] += sum over pixels of x[p, c] * dy[p, c].
template <class T>
struct ConvDepthwiseWeight {
  const T* x;
  int64_t x_col;
  const ConvTapAt* taps;
  int64_t tap_count;
  const T* dy;  // [pixels, channels]
  int64_t channels, pixels;
  T* dw;  // [all taps, channels]
};

template <class T>
struct ConvLastKernelsOf {
  int lanes;
  int max_vectors;
  int (*max_height)(int vectors);  // pixels of a tile, rows of ConvProducts
  void (*pixels)(const ConvPixels<T>&);
  void (*products)(const ConvProducts<T>&);
  void (*depthwise)(const ConvDepthwise<T>&);
  void (*depthwise_weight)(const ConvDepthwiseWeight<T>&);
  // dst[s * ld + j] = src[s * step + j * lane], s < steps, j < width; zero for width <= j < ld, the next
  // multiple of the lanes.
  void (*pack)(const T* src, int64_t step, int64_t lane, int64_t steps, int64_t width, T* dst, int64_t ld);
  // dst[j * dst_row + i] = src[i * src_row + j], i < rows, j < cols.
  void (*transpose)(const T* src, int64_t src_row, int64_t rows, int64_t cols, T* dst, int64_t dst_row);
  // sums[c] += the sum over pixels of src[p * channels + c].
  void (*sum)(const T* src, int64_t pixels, int64_t channels, T* sums);
};

struct ConvLastKernels {
  ConvLastKernelsOf<float> f32;
  ConvLastKernelsOf<double> f64;
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(ConvLastKernels, conv_last)

namespace fastnn::cpu {
template <class T>
const ConvLastKernelsOf<T>& conv_last_kernels_of() {
  if constexpr (sizeof(T) == 4) {
    return conv_last_kernels().f32;
  } else {
    return conv_last_kernels().f64;
  }
}
}  // namespace fastnn::cpu
