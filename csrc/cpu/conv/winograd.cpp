// Winograd's F(4x4, 3x3): convolutions of 3x3 kernels and stride 1, dilated or not, with a quarter of the
// multiplications; kernels with a depth as well, whose slices are so many more channels to sum over.
//
//   y = A^T [(G w G^T) . (B^T x B)] A   for each tile of 4x4 outputs, which reads 6x6 inputs
//
// The product in the middle, summed over channels, is a matrix product for each of the 36 positions of a
// tile:
//   M[position][tile, k] = V[position][tile, c] U[position][c, k]
// Weights become U once a call: [position, panel of k, c, k in the panel]. Then a block of tiles at a time,
// whose V stays in the second-level cache while all panels of k pass; 36 products of a panel are followed at
// once by its output transform. The gradient of the input is the same with rotated kernels and with c and k
// changed. The blocks do not change the order of a sum, so the bits do not depend on the number of threads.
//
// Its sums give NaN where infinity or NaN is only near a window; then the direct algorithm does all again.
#include "cpu/kernels/winograd.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/winograd_tiles.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kTile = kWinogradTile, kPositions = kWinogradPositions;
constexpr int64_t kTaps = 9;
constexpr int64_t kWeightBytes = 4 << 20;   // of U, where the weights are less
constexpr int64_t kInputBytes = 640 << 10;  // V of a block: most of a small second-level cache
constexpr int64_t kChain = 64;              // channels in one chain of a sum; the chains are added up apart
constexpr int64_t kMinChannels = 16;        // below, transforms take longer than products save
// Of a gradient of x, without AVX-512: torch's sums are shorter there, and for 51 to 96 channels its largest
// error is 1/3.0 to 1/3.4 of Winograd's, where 1/3 is the least that counts as right.
constexpr int64_t kMinSummedChannels = 128;
constexpr int64_t kMinTiles = 32;  // so little work is not worth twice the rounding error
constexpr int64_t kMinFilled = 8;  // of the 16 outputs of a tile: many small images have little in each
// Kernels per tile above which the transformed weights cost more than they save: they are 4 times the
// weights, and too large for a second-level cache.
constexpr int64_t kMaxWeights = 4096;

bool enabled_at_start() {
  const char* value = std::getenv("FASTNN_WINOGRAD");
  return value == nullptr || std::strcmp(value, "0") != 0;
}
std::atomic<bool> enabled{enabled_at_start()};

// The forward pass or the gradient of the input.
struct Pass {
  WinogradGeometry geometry;
  int64_t g, in_channels, out_channels;  // channels of a group
  const float *x, *bias, *w;
  int64_t w_group, w_in, w_out, w_slice, w_tap;
  bool rotated;
  float* y;
};

// The kernels' weights are [k, c / g, taps, 9] or, with channels last, [k, taps, 9, c / g].
Pass make_pass(const ConvGeometry& p, const void* w, const void* bias, const void* x, void* y,
               bool backward) {
  const int64_t cg = p.c / p.g, kg = p.k / p.g, taps = p.kernel[0];
  const int64_t w_in = p.channels_last ? 1 : taps * 9, w_out = cg * taps * 9;
  return {.geometry = WinogradGeometry(p, backward),
          .g = p.g,
          .in_channels = backward ? kg : cg,
          .out_channels = backward ? cg : kg,
          .x = static_cast<const float*>(x),
          .bias = static_cast<const float*>(bias),
          .w = static_cast<const float*>(w),
          .w_group = kg * w_out,
          .w_in = backward ? w_out : w_in,
          .w_out = backward ? w_in : w_out,
          .w_slice = p.channels_last ? 9 * cg : 9,
          .w_tap = p.channels_last ? cg : 1,
          .rotated = backward,
          .y = static_cast<float*>(y)};
}

struct Panels {
  int64_t width, count;  // channels of a full panel; panels
  int64_t out, lanes;
  Panels(int64_t out_channels)
      : width(2 * winograd_kernels().lanes),
        count(ceil_div(out_channels, width)),
        out(out_channels),
        lanes(winograd_kernels().lanes) {}
  int64_t channels(int64_t i) const { return std::min(width, out - i * width); }
  int64_t room(int64_t i) const { return ceil_div(channels(i), lanes) * lanes; }
  int64_t total() const { return ceil_div(out, lanes) * lanes; }
  // Of `n` panels from panel i on, where there are so many.
  int64_t room(int64_t i, int64_t n) const { return std::min(n * width, total() - i * width); }
};

// The panels whose weights are transformed at a time, of one group or of several whole ones.
struct Round {
  int64_t group, groups, panel, panels;
};

// The largest round: U is four times the weights, and each round transforms all tiles anew. It takes no more
// than half of the weights, half of the images (torch takes copies of both) or kWeightBytes.
Round largest_round(const Pass& p, const Panels& panels) {
  const WinogradGeometry& g = p.geometry;
  const int64_t summed = g.taps * p.in_channels, weights = p.g * p.out_channels * summed * kTaps;
  const int64_t room =
      std::max({kWeightBytes / 4, weights / 2, (g.x.elements(g.n) + g.y.elements(g.n)) / 2}) /
      (kPositions * summed);
  if (panels.total() <= room) return {0, std::min(p.g, room / panels.total()), 0, panels.count};
  const int64_t rounds = ceil_div(panels.count, std::max<int64_t>(1, room / panels.width));
  return {0, 1, 0, ceil_div(panels.count, rounds)};
}

void transform_weights(const Pass& p, const Panels& panels, const Round& round, float* u, int64_t u_group,
                       int64_t u_position) {
  constexpr int64_t kPart = 32;  // channels at a time
  const int64_t parts = ceil_div(p.in_channels, kPart), taps = p.geometry.taps;
  parallel_for(round.groups * round.panels * taps * parts, ceil_div(kGrain, kPart * panels.width * 8),
               [&](int64_t first, int64_t last) {
                 for (int64_t item = first; item < last; ++item) {
                   const int64_t c = item % parts * kPart, tap = item / parts % taps,
                                 panel = round.panel + item / parts / taps % round.panels,
                                 group = round.group + item / parts / taps / round.panels;
                   WinogradWeight weight;
                   weight.w = p.w + group * p.w_group + (p.rotated ? taps - 1 - tap : tap) * p.w_slice +
                              c * p.w_in + panel * panels.width * p.w_out;
                   weight.in_stride = p.w_in;
                   weight.out_stride = p.w_out;
                   weight.tap = p.w_tap;
                   weight.in = std::min(kPart, p.in_channels - c);
                   weight.out = panels.channels(panel);
                   weight.rotated = p.rotated;
                   weight.width = panels.room(panel);
                   weight.u = u + (group - round.group) * u_group +
                              (panel - round.panel) * panels.width * taps * p.in_channels +
                              (tap * p.in_channels + c) * weight.width;
                   weight.u_position = u_position;
                   winograd_kernels().weight(weight);
                 }
               });
}

// Tiles in a block: as many as the cache holds, in whole register tiles, shared out evenly.
int64_t block_tiles(int64_t total, int64_t groups, int64_t tile_bytes, int64_t threads) {
  const int64_t rows = int64_t{winograd_kernels().tile_rows};
  const int64_t most = std::max(rows, kInputBytes / tile_bytes / rows * rows);
  const int64_t blocks = ceil_div(ceil_div(total, most) * groups, threads) * threads;
  return std::max(ceil_div(total, ceil_div(blocks, groups)), std::min(total, rows));
}

// Whether all results of the round were finite.
bool convolve(const Pass& p, const Panels& panels, const Round& round, float* u) {
  const auto& kernels = winograd_kernels();
  const WinogradTiles tiles = p.geometry.tiles();
  const int64_t threads = thread_limit(), taps = p.geometry.taps, summed = taps * p.in_channels;
  const int64_t channels = panels.room(round.panel, round.panels), u_group = channels * summed;
  const int64_t u_position = round.groups * u_group + kWinogradSkew;
  transform_weights(p, panels, round, u, u_group, u_position);

  const int64_t v_tap = ceil_div(p.in_channels, kernels.lanes) * kernels.lanes, v_tile = taps * v_tap;
  const int64_t size = block_tiles(tiles.total, round.groups, kPositions * v_tile * 4, threads);
  const int64_t v_position = size * v_tile + kWinogradSkew, m_position = size * panels.width + kWinogradSkew;
  const int64_t blocks = ceil_div(tiles.total, size);
  // Few blocks: panels are shared out too, each part with a V of its own.
  const int64_t parts = std::clamp<int64_t>(ceil_div(threads, round.groups * blocks), 1, round.panels);
  const int64_t work = size * kPositions * summed * channels / parts / 16;
  std::atomic<bool> finite{true};

  parallel_for(round.groups * blocks * parts, ceil_div(kGrain, work + 1), [&](int64_t first, int64_t last) {
    const Scratch<float> v(kPositions * v_position), m(kPositions * m_position);
    for (int64_t item = first; item < last; ++item) {
      const int64_t part = item % parts, block = item / parts % blocks;
      const int64_t u_index = item / parts / blocks, group = round.group + u_index;
      const int64_t begin = block * size, end = std::min(begin + size, tiles.total);
      tiles.for_each_run(begin, end, [&](int64_t image, int64_t row, int64_t col, int64_t count, int64_t at) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          WinogradInput input = p.geometry.input(p.x, image, group * p.in_channels, tap, row, col, count);
          input.channels = p.in_channels;
          input.v = v.data() + at * v_tile + tap * v_tap;
          input.v_position = v_position;
          input.v_tile = v_tile;
          kernels.input(input);
        }
      });
      for (int64_t i = round.panels * part / parts; i < round.panels * (part + 1) / parts; ++i) {
        const int64_t panel = round.panel + i, k = panel * panels.width, width = panels.room(panel);
        WinogradProduct product;
        product.v_tile = v_tile;
        product.tiles = end - begin;
        product.width = width;
        for (int64_t position = 0; position < kPositions; ++position) {
          const float* const panel_u =
              u + position * u_position + u_index * u_group + i * panels.width * summed;
          product.m = m.data() + position * m_position;
          product.u = panel_u;
          for (int64_t tap = 0; tap < taps; ++tap) {
            for (int64_t c = 0; c < p.in_channels; c += kChain) {
              product.steps = std::min(kChain, p.in_channels - c);
              product.v = v.data() + position * v_position + tap * v_tap + c;
              product.next = product.u + product.steps * width;
              product.accumulate = product.u != panel_u;
              if (product.next == panel_u + summed * width) product.next = panel_u + u_position;
              kernels.product(product);
              product.u += product.steps * width;
            }
          }
        }
        tiles.for_each_run(begin, end,
                           [&](int64_t image, int64_t row, int64_t col, int64_t count, int64_t at) {
                             const WinogradImage to = p.geometry.output(image, group * p.out_channels + k);
                             WinogradOutput output;
                             output.m = m.data() + at * width;
                             output.m_position = m_position;
                             output.m_tile = width;
                             output.tiles = count;
                             output.channels = panels.channels(panel);
                             output.bias = p.bias == nullptr ? nullptr : p.bias + group * p.out_channels + k;
                             output.plane = to.plane;
                             output.line = to.line;
                             output.pixel = to.pixel;
                             output.rows = std::min(kTile, to.height - row * kTile);
                             output.cols = std::min(count * kTile, to.width - col * kTile);
                             output.y = p.y + to.start + row * kTile * to.line + col * kTile * to.pixel;
                             if (!kernels.output(output)) finite.store(false, std::memory_order_relaxed);
                           });
      }
    }
  });
  return finite.load();
}

// Whether all results were finite.
bool convolve(const Pass& p) {
  const Panels panels(p.out_channels);
  const Round largest = largest_round(p, panels);
  const Scratch<float> u(
      kPositions *
      (largest.groups * largest.panels * panels.width * p.geometry.taps * p.in_channels + kWinogradSkew));
  for (int64_t group = 0; group < p.g; group += largest.groups) {
    for (int64_t panel = 0; panel < panels.count; panel += largest.panels) {
      const Round round{group, std::min(largest.groups, p.g - group), panel,
                        std::min(largest.panels, panels.count - panel)};
      if (!convolve(p, panels, round, u.data())) return false;
    }
  }
  return true;
}

// Of the output or of the input, whichever are more.
int64_t most_tiles(const ConvGeometry& p) {
  return std::max(WinogradGeometry(p).tiles().total, WinogradGeometry(p, true).tiles().total);
}

bool three_by_three(const ConvGeometry& p) {
  return p.dtype == DType::kFloat32 && p.kernel[1] == 3 && p.kernel[2] == 3 && p.stride[0] == 1 &&
         p.stride[1] == 1 && p.stride[2] == 1;
}

}  // namespace

bool winograd_enabled() {
  return enabled.load(std::memory_order_relaxed);
}
void set_winograd_enabled(bool on) {
  enabled.store(on, std::memory_order_relaxed);
}

bool winograd_applicable(const ConvGeometry& p) {
  return winograd_enabled() && three_by_three(p) && std::min(p.c, p.k) / p.g >= kMinChannels &&
         most_tiles(p) >= kMinTiles;
}

bool winograd_applicable(const ConvBackwardDataParams& p) {
  return winograd_applicable(static_cast<const ConvGeometry&>(p)) &&
         (winograd_kernels().lanes == 16 || p.k / p.g >= kMinSummedChannels);
}

bool winograd_pays(const ConvGeometry& p) {
  const int64_t outputs = p.n * p.out[0] * p.out[1] * p.out[2], tiles = most_tiles(p);
  const bool dilated = p.dilation[1] > 1 || p.dilation[2] > 1;
  return p.kernel[0] * (p.c / p.g) * (p.k / p.g) <= kMaxWeights * tiles &&
         (!dilated || outputs >= kMinFilled * tiles);
}

void conv_winograd(const ConvForwardParams& p) {
  if (!convolve(make_pass(p, p.w, p.b, p.x, p.y, false)))
    p.channels_last ? conv_last_dense(p) : conv_shift(p);
}

void conv_winograd(const ConvBackwardDataParams& p) {
  if (!convolve(make_pass(p, p.w, p.b, p.dy, p.dx, true)))
    p.channels_last ? conv_last_dense(p) : conv_shift(p);
}

}  // namespace fastnn::cpu
