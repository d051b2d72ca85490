// The images and tiles of Winograd's convolutions, numbered image by image, row by row.
//
// An image is a slice of the output's depth and, with a dilation of d, every d-th of its rows and columns:
// these meet every d-th row and column of the input alone, as a kernel without dilation meets an image of its
// own.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/conv/patch.h"
#include "cpu/kernels/winograd.h"
#include "cpu/parallel.h"

namespace fastnn::cpu {

// Planes of the transformed domain start a line further than they must: multiples of 4 KiB share few lines
// of the first-level cache.
constexpr int64_t kWinogradSkew = 16;

// An image among the values of a tensor, as the kernels take it.
struct WinogradImage {
  int64_t start, plane, line, pixel;  // elements up to it; from a channel, a row, a column to the next
  int64_t height, width;
};

// One side of a convolution: [n, channels, depth, height, width], or its channels last.
struct WinogradTensor {
  bool channels_last;
  int64_t channels;
  const int64_t (&size)[3], (&dilation)[3];

  int64_t elements(int64_t n) const { return n * channels * size[0] * size[1] * size[2]; }

  // Of slice d the rows and columns that are `row` and `col` modulo the dilation; empty if there is no slice.
  WinogradImage image(int64_t n, int64_t channel, int64_t d, int64_t row, int64_t col) const {
    const int64_t pixel = channels_last ? channels : 1, line = size[2] * pixel;
    const int64_t plane = channels_last ? 1 : size[0] * size[1] * size[2];
    const bool exists = d >= 0 && d < size[0];
    return {n * channels * size[0] * size[1] * size[2] + channel * plane + (d * size[1] + row) * line +
                col * pixel,
            plane,
            line * dilation[1],
            pixel * dilation[2],
            exists ? ceil_div(std::max<int64_t>(0, size[1] - row), dilation[1]) : 0,
            ceil_div(std::max<int64_t>(0, size[2] - col), dilation[2])};
  }
};

struct WinogradTiles {
  int64_t rows, cols, total;
  WinogradTiles(int64_t n, int64_t height, int64_t width)
      : rows(ceil_div(height, kWinogradTile)), cols(ceil_div(width, kWinogradTile)), total(n * rows * cols) {}

  // f(image, row, column, count, first - begin) for the tiles [begin, end), in runs of neighbours that the
  // kernels take at once.
  template <class F>
  void for_each_run(int64_t begin, int64_t end, const F& f) const {
    for (int64_t t = begin; t < end;) {
      const int64_t col = t % cols, row = t / cols;
      const int64_t count = std::min({end - t, cols - col, int64_t{kWinogradRun}});
      f(row / rows, row % rows, col, count, t - begin);
      t += count;
    }
  }
};

// The correlation y[n, k, o] = sum of w[k, c, r] * x[n, c, o + r * dilation - padding] over the tiles of y.
struct WinogradGeometry {
  int64_t n, taps;  // taps: of the kernel along the depth
  const int64_t (&dilation)[3];
  int64_t padding[3];
  WinogradTensor x, y;

  // The forward pass of p; or `backward`, dx from dy with the kernels rotated.
  explicit WinogradGeometry(const ConvGeometry& p, bool backward = false)
      : n(p.n),
        taps(p.kernel[0]),
        dilation(p.dilation),
        x{p.channels_last, backward ? p.k : p.c, backward ? p.out : p.in, p.dilation},
        y{p.channels_last, backward ? p.c : p.k, backward ? p.in : p.out, p.dilation} {
    for (int i = 0; i < 3; ++i)
      padding[i] = backward ? (p.kernel[i] - 1) * dilation[i] - p.padding[i] : p.padding[i];
  }

  WinogradTiles tiles() const {
    return {n * y.size[0] * dilation[1] * dilation[2], ceil_div(y.size[1], dilation[1]),
            ceil_div(y.size[2], dilation[2])};
  }

  struct Place {
    int64_t n, d, row, col;
  };
  Place place(int64_t image) const {
    const int64_t slice = image / (dilation[1] * dilation[2]);
    return {slice / y.size[0], slice % y.size[0], image / dilation[2] % dilation[1], image % dilation[2]};
  }

  WinogradImage output(int64_t image, int64_t channel) const {
    const Place at = place(image);
    return y.image(at.n, channel, at.d, at.row, at.col);
  }

  // `count` tiles of x from tile (row, col) of the output's image on, at one tap along the depth.
  WinogradInput input(const float* values, int64_t image, int64_t channel, int64_t tap, int64_t row,
                      int64_t col, int64_t count) const {
    const Place at = place(image);
    const int64_t top = floor_div(at.row - padding[1], dilation[1]),
                  left = floor_div(at.col - padding[2], dilation[2]);
    const WinogradImage from =
        x.image(at.n, channel, at.d - padding[0] + tap * dilation[0], at.row - padding[1] - top * dilation[1],
                at.col - padding[2] - left * dilation[2]);
    WinogradInput in{};
    in.x = values + from.start;
    in.plane = from.plane;
    in.line = from.line;
    in.pixel = from.pixel;
    in.height = from.height;
    in.width = from.width;
    in.row = row * kWinogradTile + top;
    in.col = col * kWinogradTile + left;
    in.tiles = count;
    return in;
  }
};

}  // namespace fastnn::cpu
