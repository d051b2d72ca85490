// The transforms of Winograd's convolution of 3x3 kernels in tiles of 4x4 outputs; see
// csrc/cpu/conv/winograd.cpp.
//
// A tile has 36 positions, numbered row by row; each is a plane of a matrix whose element (i, j) lies at
// base + position * stride + i * row + j. Channels run along registers, so rows of planes have room for whole
// registers. Images have channels first (planes) or last (plane == 1), and may be every d-th row and column
// of a larger one.
#pragma once
#include <cstdint>

#include "cpu/capability.h"

namespace fastnn::cpu {

constexpr int kWinogradTile = 4;        // outputs along a side
constexpr int kWinogradPositions = 36;  // of a tile in the transformed domain
constexpr int kWinogradRun = 16;        // tiles side by side in one call: what the kernels hold in L1

// Tiles of an image to planes [tile, channel].
struct WinogradInput {
  const float* x;  // channel i, value (r, q) at x + i * plane + r * line + q * pixel; 0 outside the image
  int64_t plane, line, pixel, height, width, channels;
  int64_t row, col;  // where the first tile starts, possibly outside
  int64_t tiles;     // at most kWinogradRun
  float* v;
  int64_t v_position, v_tile;
};

// Planes [tile, channel] to tiles of an image.
struct WinogradOutput {
  const float* m;
  int64_t m_position, m_tile, tiles;
  const float* bias;  // [channels] or null
  int64_t channels;   // of the image; the planes have room for whole registers
  float* y;           // channel i, value (r, q) at y + i * plane + r * line + q * pixel
  int64_t plane, line, pixel;
  int64_t rows, cols;  // of the image that are there: at most 4 and 4 * tiles, none below 1
};

// Kernels to planes [in, out], rows of `width` zero-filled beyond `out`.
struct WinogradWeight {
  const float* w;  // kernel (i, o), value t, at w + i * in_stride + o * out_stride + t * tap; one stride is 1
  int64_t in_stride, out_stride, tap, in, out;
  bool rotated;  // by half a turn
  float* u;
  int64_t u_position, width;
};

// m[t, k] = or += sum over c < steps of v[t, c] * u[c, k], for k < width, one or two registers.
struct WinogradProduct {
  const float* v;
  int64_t v_tile, tiles, steps;
  const float* u;  // [steps, width]
  int64_t width;
  const float* next;  // what u will be in the next call
  float* m;           // [tiles, width]
  bool accumulate;
};

// One row of planes, [channel], to kernels.
struct WinogradWeightGradient {
  const float* m;
  int64_t m_position, channels;
  bool accumulate;  // add to dw
  float* dw;        // channel i, value t at dw + i * plane + t * tap, one of them 1
  int64_t plane, tap;
};

struct WinogradKernels {
  int lanes;                               // of a register
  int tile_rows;                           // tiles in a register tile of `product`
  void (*input)(const WinogradInput&);     // windows of 6x6 values, 4 apart
  void (*gradient)(const WinogradInput&);  // 4x4 values of dy, as the kernels of the weight's gradient
  void (*product)(const WinogradProduct&);
  bool (*output)(const WinogradOutput&);  // whether all was finite
  void (*weight)(const WinogradWeight&);
  bool (*weight_gradient)(const WinogradWeightGradient&);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(WinogradKernels, winograd)
