// Inner loops of convolution. All of them see the input through a table of offsets: step s of the reduction,
// which stands for one (input channel, kernel tap), reads its row of values at x + offset[s]. See
// csrc/cpu/conv/patch.h.
#pragma once
#include <cstdint>

#include "cpu/capability.h"

namespace fastnn::cpu {

// y[i, j] = bias[i] + sum over s of a[s, i] * x[offset[s] + j], for `cols` flat columns j of which only those
// with j % pitch < width are stored: the others lie between the end of one output row and the start of the
// next.
template <class T>
struct ConvPanel {
  const T* x;
  const int32_t* offset;  // [steps]
  int64_t steps;
  const T* a;     // [steps, tile rows of `rows`], zero-filled beyond rows
  const T* bias;  // [rows] or null
  int rows;       // at most max_rows
  int64_t cols, pitch, width;
  T* y;  // column j at y + i * y_channel + (j / pitch) * y_row + (j % pitch) * y_col
  int64_t y_channel, y_row, y_col;
  bool exact;  // nothing past the last column may be read; then cols >= max_cols
};

// acc[s, k] += sum over r < rows, q < cols of x[offset[s] + r * x_row + q] * dy[(r * cols + q), k].
template <class T>
struct ConvOuter {
  const T* x;
  const int32_t* offset;  // [steps]
  int64_t steps, rows, cols, x_row;
  const T* dy;  // [rows * cols, vectors * lanes]
  int vectors;  // at most max_vectors
  T* acc;       // [steps, ...], row stride acc_row
  int64_t acc_row;
};

// The same sums for channels too few to fill a register: acc[s, k] += dot products along the rows of dy.
template <class T>
struct ConvDot {
  const T* x;
  const int32_t* offset;  // [steps]
  int64_t steps, rows, cols, x_row;
  const T* dy;  // channel k, row r at dy + k * dy_channel + r * dy_row
  int64_t channels, dy_channel, dy_row;
  T* acc;  // [steps, ...], row stride acc_row
  int64_t acc_row;
};

template <class T>
struct ConvKernelsOf {
  int lanes;                   // of a register
  int max_rows;                // of a panel
  int max_cols;                // columns that one step of a panel may read
  int max_vectors;             // of ConvOuter
  int (*tile_rows)(int rows);  // rows in the packed weights of a panel of `rows` rows
  void (*panel)(const ConvPanel<T>&);
  void (*outer)(const ConvOuter<T>&);
  void (*dot)(const ConvDot<T>&);
  // dst[p * ld + k] = src[k * src_channel + p] for p < cols, k < channels; zero for channels <= k < ld.
  void (*transpose)(const T* src, int64_t src_channel, int64_t channels, int64_t cols, T* dst, int64_t ld);
  // dst[j] = src[j * step]
  void (*copy)(const T* src, int64_t step, T* dst, int64_t n);
  T (*sum)(const T* src, int64_t n);
};

struct ConvKernels {
  ConvKernelsOf<float> f32;
  ConvKernelsOf<double> f64;
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(ConvKernels, conv)

namespace fastnn::cpu {
template <class T>
const ConvKernelsOf<T>& conv_kernels_of() {
  if constexpr (sizeof(T) == 4) {
    return conv_kernels().f32;
  } else {
    return conv_kernels().f64;
  }
}
}  // namespace fastnn::cpu
