// The tiles of Winograd's convolutions, numbered image by image, row by row.
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

// Where an image's values lie: [n, channels, area] or [n, area, channels].
struct WinogradImage {
  int64_t size, plane, pixel;  // elements of an image; from a channel, a pixel to the next
  WinogradImage(bool channels_last, int64_t channels, int64_t area)
      : size(channels * area), plane(channels_last ? 1 : area), pixel(channels_last ? channels : 1) {}
  int64_t start(int64_t n, int64_t channel) const { return n * size + channel * plane; }
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

}  // namespace fastnn::cpu
