// Winograd's F(3x3, 4x4): the gradient of 3x3 weights with a quarter of the multiplications.
//
//   dw = A^T [sum over tiles of (G dy G^T) . (B^T x B)] A     for tiles of 4x4 dy, which meet 6x6 inputs
//
// With the sum over all tiles inside, each of the 36 positions is one matrix product:
//   M[position][k, c] = sum over t of  W[position][t, k] V[position][t, c]
// A block of tiles at a time is transformed and added to M, in chains of kChain tiles. Splits, fixed runs of
// tiles, have an M of their own; they are added in order by the last transform. Splits and blocks depend on
// shapes alone, so the bits do not depend on the number of threads. More threads than splits share out k.
#include <algorithm>
#include <atomic>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/winograd_tiles.h"
#include "cpu/kernels/gemm.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kBlockBytes = 640 << 10;  // V and W of a block: a part of a small second-level cache
constexpr int64_t kSumBytes = 1 << 20;  // a larger M is not in that cache: longer blocks read it less often
constexpr int64_t kPartialBytes = 8 << 20;  // all M: adding them up must stay cheap
constexpr int64_t kMaxSplits = 16;          // enough to share out
constexpr int64_t kChain = 32;

struct Sums {
  int64_t position, group, split;  // strides of M
  int64_t splits, block;           // their number; tiles in a block
  int64_t v_tap, v_tile, w_tile;   // channels of x at one tap along the depth, at all of them; of dy

  Sums(const ConvBackwardWeightParams& p, const WinogradTiles& tiles) {
    const int64_t lanes = winograd_kernels().lanes, cg = p.c / p.g, kg = p.k / p.g;
    v_tap = ceil_div(cg, lanes) * lanes;
    v_tile = p.kernel[0] * v_tap;
    w_tile = ceil_div(kg, lanes) * lanes;
    position = kg * v_tile + kWinogradSkew;
    group = kWinogradPositions * position;
    split = p.g * group;
    const int64_t channels = v_tile + w_tile;
    const int64_t fit = std::max<int64_t>(16, kBlockBytes / (kWinogradPositions * 4 * channels));
    block = std::min(tiles.total, group * 4 > kSumBytes ? std::max(fit, channels) : fit);
    splits = std::clamp<int64_t>(kPartialBytes / (split * 4), 1,
                                 std::min(kMaxSplits, ceil_div(tiles.total, block)));
  }
};

// Adds the tiles [begin, end) of one group to the rows [first, last) of its M.
struct Adder {
  const ConvBackwardWeightParams& p;
  const WinogradGeometry& geometry;
  const WinogradTiles& tiles;
  const Sums& sums;
  int64_t first, last;  // output channels of the group
  float *v, *w;
  int64_t v_position, w_position;

  void transform(int64_t group, int64_t begin, int64_t end) const {
    const auto& kernels = winograd_kernels();
    const int64_t cg = p.c / p.g, kg = p.k / p.g;
    tiles.for_each_run(begin, end, [&](int64_t image, int64_t row, int64_t col, int64_t count, int64_t at) {
      for (int64_t tap = 0; tap < geometry.taps; ++tap) {
        WinogradInput x =
            geometry.input(static_cast<const float*>(p.x), image, group * cg, tap, row, col, count);
        x.channels = cg;
        x.v = v + at * sums.v_tile + tap * sums.v_tap;
        x.v_position = v_position;
        x.v_tile = sums.v_tile;
        kernels.input(x);
      }
      const WinogradImage from = geometry.output(image, group * kg + first);
      WinogradInput dy;
      dy.x = static_cast<const float*>(p.dy) + from.start;
      dy.plane = from.plane;
      dy.line = from.line;
      dy.pixel = from.pixel;
      dy.height = from.height;
      dy.width = from.width;
      dy.channels = last - first;
      dy.row = row * kWinogradTile;
      dy.col = col * kWinogradTile;
      dy.tiles = count;
      dy.v = w + at * sums.w_tile;
      dy.v_position = w_position;
      dy.v_tile = sums.w_tile;
      kernels.gradient(dy);
    });
  }

  void add(int64_t count, bool accumulate, float* m) const {
    const auto& gemm = gemm_kernels().f32;
    GemmBlock<float> product;
    product.m = last - first;
    product.n = product.b_row = product.c_row = sums.v_tile;
    product.panels = ceil_div(product.m, gemm.tile.mr);
    product.a_row = product.b_col = 1;
    product.a_col = sums.w_tile;
    for (int64_t position = 0; position < kWinogradPositions; ++position) {
      product.c = m + position * sums.position + first * sums.v_tile;
      for (int64_t t = 0; t < count; t += kChain) {
        product.k = std::min(kChain, count - t);
        product.a = w + position * w_position + t * sums.w_tile;
        product.b = v + position * v_position + t * sums.v_tile;
        product.accumulate = accumulate || t > 0;
        gemm.block(product);
      }
    }
  }
};

}  // namespace

bool winograd_pays(const ConvBackwardWeightParams& p) {
  constexpr int64_t kMinTiles = 64;  // direct sums over so few positions are exact to the last bits
  return winograd_pays(static_cast<const ConvGeometry&>(p)) && WinogradGeometry(p).tiles().total >= kMinTiles;
}

void conv_winograd(const ConvBackwardWeightParams& p) {
  const int64_t cg = p.c / p.g, kg = p.k / p.g;
  const WinogradGeometry geometry(p);
  const WinogradTiles tiles = geometry.tiles();
  const Sums sums(p, tiles);
  const Scratch<float> m(sums.splits * sums.split);
  const int64_t items = sums.splits * p.g;
  const int64_t parts = std::clamp<int64_t>(ceil_div(thread_limit(), items), 1, ceil_div(kg, 16));
  const int64_t work = tiles.total / sums.splits * kWinogradPositions * sums.v_tile * kg / parts / 16;

  parallel_for(items * parts, ceil_div(kGrain, work + 1), [&](int64_t first, int64_t last) {
    const int64_t v_position = sums.block * sums.v_tile + kWinogradSkew;
    const int64_t w_position = sums.block * sums.w_tile + kWinogradSkew;
    const Scratch<float> v(kWinogradPositions * v_position), w(kWinogradPositions * w_position);
    for (int64_t item = first; item < last; ++item) {
      const int64_t part = item % parts, group = item / parts % p.g, split = item / parts / p.g;
      const Adder adder{p,        geometry, tiles,      sums,      kg * part / parts, kg * (part + 1) / parts,
                        v.data(), w.data(), v_position, w_position};
      const int64_t begin = tiles.total * split / sums.splits, end = tiles.total * (split + 1) / sums.splits;
      for (int64_t t = begin; t < end; t += sums.block) {
        const int64_t count = std::min(sums.block, end - t);
        adder.transform(group, t, t + count);
        adder.add(count, t > begin, m.data() + split * sums.split + group * sums.group);
      }
    }
  });

  std::atomic<bool> finite{true};
  const int64_t taps = geometry.taps;
  parallel_for(
      p.k * taps, ceil_div(kGrain, kWinogradPositions * cg * sums.splits), [&](int64_t first, int64_t last) {
        for (int64_t item = first; item < last; ++item) {
          const int64_t k = item / taps, tap = item % taps;
          WinogradWeightGradient gradient;
          gradient.m = m.data() + k / kg * sums.group + k % kg * sums.v_tile + tap * sums.v_tap;
          gradient.m_position = sums.position;
          gradient.m_split = sums.split;
          gradient.splits = sums.splits;
          gradient.channels = cg;
          gradient.dw = static_cast<float*>(p.dw) + k * cg * taps * 9 + tap * 9 * (p.channels_last ? cg : 1);
          gradient.plane = p.channels_last ? 1 : taps * 9;
          gradient.tap = p.channels_last ? cg : 1;
          if (!winograd_kernels().weight_gradient(gradient)) finite.store(false, std::memory_order_relaxed);
        }
      });
  if (!finite.load()) p.channels_last ? conv_last_dense(p) : conv_outer(p);
}

}  // namespace fastnn::cpu
