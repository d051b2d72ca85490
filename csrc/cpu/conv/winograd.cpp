// Winograd's F(4x4, 3x3): convolutions of 3x3 kernels and stride 1 with a quarter of the multiplications.
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
#include <utility>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/winograd_tiles.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kTile = kWinogradTile, kPositions = kWinogradPositions;
constexpr int64_t kInputBytes = 640 << 10;  // V of a block: most of a small second-level cache
constexpr int64_t kChain = 64;              // channels in one chain of a sum; the chains are added up apart
constexpr int64_t kMinChannels = 16;        // below, transforms take longer than products save
// Of a gradient of x, without AVX-512: torch's sums are shorter there, and for 51 to 96 channels its largest
// error is 1/3.0 to 1/3.4 of Winograd's, where 1/3 is the least that counts as right.
constexpr int64_t kMinSummedChannels = 128;
constexpr int64_t kMinTiles = 32;  // so little work is not worth twice the rounding error
// Kernels per tile above which the transformed weights cost more than they save: they are 4 times the
// weights, and too large for a second-level cache.
constexpr int64_t kMaxWeights = 4096;

bool enabled_at_start() {
  const char* value = std::getenv("FASTNN_WINOGRAD");
  return value == nullptr || std::strcmp(value, "0") != 0;
}
std::atomic<bool> enabled{enabled_at_start()};

// One convolution with 3x3 kernels: the forward pass or the gradient of the input.
struct Pass {
  int64_t n, g, in_channels, out_channels;  // channels of a group
  int64_t in[2], out[2], pad[2];
  bool channels_last;
  const float *x, *bias, *w;
  int64_t w_group, w_in, w_out, w_tap;
  bool rotated;
  float* y;
};

// The kernels' weights are [k, c / g, 9] or, with channels last, [k, 9, c / g].
Pass make_pass(const ConvGeometry& p, const void* w, const void* bias, const void* x, void* y,
               bool backward) {
  const int64_t cg = p.c / p.g, kg = p.k / p.g;
  const int64_t of_k = cg * 9, of_c = p.channels_last ? 1 : 9;
  Pass pass{};
  pass.n = p.n;
  pass.g = p.g;
  pass.in_channels = cg;
  pass.out_channels = kg;
  for (int d = 0; d < 2; ++d) {
    pass.in[d] = p.in[d + 1];
    pass.out[d] = p.out[d + 1];
    pass.pad[d] = p.padding[d + 1];
  }
  pass.w_in = of_c, pass.w_out = of_k;
  if (backward) {
    std::swap(pass.in_channels, pass.out_channels);
    std::swap(pass.in, pass.out);
    std::swap(pass.w_in, pass.w_out);
    for (int64_t& pad : pass.pad) pad = 2 - pad;
  }
  pass.channels_last = p.channels_last;
  pass.x = static_cast<const float*>(x);
  pass.bias = static_cast<const float*>(bias);
  pass.w = static_cast<const float*>(w);
  pass.w_group = kg * of_k;
  pass.w_tap = p.channels_last ? cg : 1;
  pass.rotated = backward;
  pass.y = static_cast<float*>(y);
  return pass;
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
};

void transform_weights(const Pass& p, const Panels& panels, float* u, int64_t u_position) {
  constexpr int64_t kSlice = 32;  // channels at a time
  const int64_t slices = ceil_div(p.in_channels, kSlice);
  parallel_for(p.g * panels.count * slices, ceil_div(kGrain, kSlice * panels.width * 8),
               [&](int64_t first, int64_t last) {
                 for (int64_t item = first; item < last; ++item) {
                   const int64_t c = item % slices * kSlice, panel = item / slices % panels.count,
                                 group = item / slices / panels.count;
                   WinogradWeight weight;
                   weight.w = p.w + group * p.w_group + c * p.w_in + panel * panels.width * p.w_out;
                   weight.in_stride = p.w_in;
                   weight.out_stride = p.w_out;
                   weight.tap = p.w_tap;
                   weight.in = std::min(kSlice, p.in_channels - c);
                   weight.out = panels.channels(panel);
                   weight.rotated = p.rotated;
                   weight.width = panels.room(panel);
                   weight.u =
                       u + (group * panels.total() + panel * panels.width) * p.in_channels + c * weight.width;
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

// Whether all results were finite.
bool convolve(const Pass& p) {
  const auto& kernels = winograd_kernels();
  const WinogradTiles tiles(p.n, p.out[0], p.out[1]);
  const Panels panels(p.out_channels);
  const int64_t threads = thread_limit();
  const int64_t u_group = panels.total() * p.in_channels, u_position = p.g * u_group + kWinogradSkew;
  const Scratch<float> u(kPositions * u_position);
  transform_weights(p, panels, u.data(), u_position);

  const int64_t v_tile = ceil_div(p.in_channels, kernels.lanes) * kernels.lanes;
  const int64_t size = block_tiles(tiles.total, p.g, kPositions * v_tile * 4, threads);
  const int64_t v_position = size * v_tile + kWinogradSkew, m_position = size * panels.width + kWinogradSkew;
  const int64_t blocks = ceil_div(tiles.total, size);
  // Few blocks: panels are shared out too, each part with a V of its own.
  const int64_t parts = std::clamp<int64_t>(ceil_div(threads, p.g * blocks), 1, panels.count);
  const int64_t work = size * kPositions * p.in_channels * p.out_channels / parts / 16;
  std::atomic<bool> finite{true};

  parallel_for(p.g * blocks * parts, ceil_div(kGrain, work + 1), [&](int64_t first, int64_t last) {
    const Scratch<float> v(kPositions * v_position), m(kPositions * m_position);
    for (int64_t item = first; item < last; ++item) {
      const int64_t part = item % parts, block = item / parts % blocks, group = item / parts / blocks;
      const int64_t begin = block * size, end = std::min(begin + size, tiles.total);
      tiles.for_each_run(begin, end, [&](int64_t n, int64_t row, int64_t col, int64_t count, int64_t at) {
        WinogradInput input;
        const WinogradImage image(p.channels_last, p.g * p.in_channels, p.in[0] * p.in[1]);
        input.plane = image.plane;
        input.pixel = image.pixel;
        input.x = p.x + image.start(n, group * p.in_channels);
        input.height = p.in[0];
        input.width = p.in[1];
        input.channels = p.in_channels;
        input.row = row * kTile - p.pad[0];
        input.col = col * kTile - p.pad[1];
        input.tiles = count;
        input.v = v.data() + at * v_tile;
        input.v_position = v_position;
        input.v_tile = v_tile;
        kernels.input(input);
      });
      for (int64_t panel = panels.count * part / parts; panel < panels.count * (part + 1) / parts; ++panel) {
        const int64_t k = panel * panels.width, width = panels.room(panel);
        WinogradProduct product;
        product.v_tile = v_tile;
        product.tiles = end - begin;
        product.width = width;
        for (int64_t position = 0; position < kPositions; ++position) {
          const float* panel_u = u.data() + position * u_position + group * u_group + k * p.in_channels;
          product.m = m.data() + position * m_position;
          for (int64_t c = 0; c < p.in_channels; c += kChain) {
            product.steps = std::min(kChain, p.in_channels - c);
            product.v = v.data() + position * v_position + c;
            product.u = panel_u + c * width;
            product.next = c + kChain < p.in_channels ? product.u + kChain * width : panel_u + u_position;
            product.accumulate = c > 0;
            kernels.product(product);
          }
        }
        tiles.for_each_run(begin, end, [&](int64_t n, int64_t row, int64_t col, int64_t count, int64_t at) {
          WinogradOutput output;
          output.m = m.data() + at * width;
          output.m_position = m_position;
          output.m_tile = width;
          output.tiles = count;
          output.channels = panels.channels(panel);
          output.bias = p.bias == nullptr ? nullptr : p.bias + group * p.out_channels + k;
          const WinogradImage image(p.channels_last, p.g * p.out_channels, p.out[0] * p.out[1]);
          output.plane = image.plane;
          output.pixel = image.pixel;
          output.width = p.out[1];
          output.rows = std::min(kTile, p.out[0] - row * kTile);
          output.cols = std::min(count * kTile, p.out[1] - col * kTile);
          output.y = p.y + image.start(n, group * p.out_channels + k) +
                     (row * output.width + col) * kTile * image.pixel;
          if (!kernels.output(output)) finite.store(false, std::memory_order_relaxed);
        });
      }
    }
  });
  return finite.load();
}

bool three_by_three(const ConvGeometry& p) {
  if (p.dtype != DType::kFloat32 || p.kernel[0] != 1 || p.in[0] != 1 || p.padding[0] != 0) return false;
  for (int d = 1; d < 3; ++d) {
    if (p.kernel[d] != 3 || p.stride[d] != 1 || p.dilation[d] != 1) return false;
  }
  return true;
}

}  // namespace

bool winograd_enabled() {
  return enabled.load(std::memory_order_relaxed);
}
void set_winograd_enabled(bool on) {
  enabled.store(on, std::memory_order_relaxed);
}

bool winograd_pays(const ConvGeometry& p) {
  if (!winograd_enabled() || !three_by_three(p)) return false;
  const int64_t cg = p.c / p.g, kg = p.k / p.g;
  const WinogradTiles tiles(p.n, std::max(p.in[1], p.out[1]), std::max(p.in[2], p.out[2]));
  return std::min(cg, kg) >= kMinChannels && tiles.total >= kMinTiles && cg * kg <= kMaxWeights * tiles.total;
}

bool winograd_pays(const ConvBackwardDataParams& p) {
  return winograd_pays(static_cast<const ConvGeometry&>(p)) &&
         (winograd_kernels().lanes == 16 || p.k / p.g >= kMinSummedChannels);
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
