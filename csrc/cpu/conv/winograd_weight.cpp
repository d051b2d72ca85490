// Winograd's F(3x3, 4x4): the gradient of 3x3 weights with a quarter of the multiplications.
//
//   dw = A^T [sum over tiles of (G dy G^T) . (B^T x B)] A     for tiles of 4x4 dy, which meet 6x6 inputs
//
// With the sum over all tiles inside, each of the 36 positions is one matrix product:
//   M[position][k, c] = sum over t of  W[position][t, k] V[position][t, c]
// M is four times the weights: it is made one square of channels at a time, which lies in the second-level
// cache while blocks of tiles are transformed and added to it, in chains of kChain tiles. Splits are fixed
// runs of tiles; their transformed sums are added to dw in order. A thread has one square of one split at a
// time, and gets the next when it is done; more threads than that share out k. Squares, splits and blocks
// depend on shapes alone and the order of sums is kept, so the bits do not depend on the number of threads.
#include <algorithm>
#include <atomic>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/split_queue.h"
#include "cpu/conv/winograd_tiles.h"
#include "cpu/kernels/gemm.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kBlockBytes = 512 << 10;  // V and W of a block
constexpr int64_t kItems = 16;              // squares and splits: enough to share out
constexpr int64_t kMinSplit = 128;          // tiles; transforming the sums takes as long as 4 to 5 of them
constexpr int64_t kChain = 32;

// [0, size) in parts of nearly equal numbers of whole registers.
struct Parts {
  int64_t size, lanes, registers, count;
  Parts(int64_t size, int64_t most)
      : size(size),
        lanes(winograd_kernels().lanes),
        registers(ceil_div(size, lanes)),
        count(ceil_div(registers, std::max<int64_t>(1, most / lanes))) {}
  int64_t begin(int64_t i) const { return std::min(size, registers * i / count * lanes); }
  int64_t room() const { return ceil_div(registers, count) * lanes; }  // of the largest
};

// Most channels along a side of a square: M of 96 by 96 is 1.3 MB, but a second square transforms all anew.
int64_t side(int64_t channels) {
  return channels <= 128 ? 128 : 96;
}

struct Plan {
  Parts c, k;                      // of a group; a part of each is a square
  int64_t v_tap, v_tile, w_tile;   // channels of x at one tap along the depth, at all of them; of dy
  int64_t position;                // stride of M
  int64_t block, splits, squares;  // tiles in a block; runs of tiles; squares

  Plan(const ConvBackwardWeightParams& p, const WinogradTiles& tiles)
      : c(p.c / p.g, side(p.c / p.g) / p.kernel[0]), k(p.k / p.g, side(p.k / p.g)) {
    v_tap = c.room();
    v_tile = p.kernel[0] * v_tap;
    w_tile = k.room();
    position = w_tile * v_tile + kWinogradSkew;
    const int64_t fit = kBlockBytes / (kWinogradPositions * 4 * (v_tile + w_tile));
    block = std::min(tiles.total, std::max(kChain, fit / kChain * kChain));
    squares = p.g * c.count * k.count;
    splits = 1;
    while (2 * splits * squares <= kItems && 2 * splits * kMinSplit <= tiles.total) splits *= 2;
  }
};

// Part `part` of the rows of one square over one split.
struct Item {
  int64_t group, split, c, c_count, k, k_count;
  Item(const Plan& plan, const SplitQueue::Item& item, int64_t parts) : split(item.split) {
    const int64_t square = item.sum, part = item.part;
    const int64_t c_part = square % plan.c.count, k_part = square / plan.c.count % plan.k.count;
    group = square / plan.c.count / plan.k.count;
    c = plan.c.begin(c_part);
    c_count = plan.c.begin(c_part + 1) - c;
    const int64_t k_begin = plan.k.begin(k_part), rows = plan.k.begin(k_part + 1) - k_begin;
    k = k_begin + rows * part / parts;
    k_count = k_begin + rows * (part + 1) / parts - k;
  }
};

struct Adder {
  const ConvBackwardWeightParams& p;
  const WinogradGeometry& geometry;
  const WinogradTiles& tiles;
  const Plan& plan;
  int64_t v_position, w_position;
  const Scratch<float> m, v, w;

  Adder(const ConvBackwardWeightParams& p, const WinogradGeometry& geometry, const WinogradTiles& tiles,
        const Plan& plan)
      : p(p),
        geometry(geometry),
        tiles(tiles),
        plan(plan),
        v_position(plan.block * plan.v_tile + kWinogradSkew),
        w_position(plan.block * plan.w_tile + kWinogradSkew),
        m(kWinogradPositions * plan.position),
        v(kWinogradPositions * v_position),
        w(kWinogradPositions * w_position) {}

  void transform(const Item& item, int64_t begin, int64_t end) const {
    const auto& kernels = winograd_kernels();
    const int64_t x_channel = item.group * (p.c / p.g) + item.c;
    const int64_t dy_channel = item.group * (p.k / p.g) + item.k;
    tiles.for_each_run(begin, end, [&](int64_t image, int64_t row, int64_t col, int64_t count, int64_t at) {
      for (int64_t tap = 0; tap < geometry.taps; ++tap) {
        WinogradInput x =
            geometry.input(static_cast<const float*>(p.x), image, x_channel, tap, row, col, count);
        x.channels = item.c_count;
        x.v = v.data() + at * plan.v_tile + tap * plan.v_tap;
        x.v_position = v_position;
        x.v_tile = plan.v_tile;
        kernels.input(x);
      }
      const WinogradImage from = geometry.output(image, dy_channel);
      WinogradInput dy;
      dy.x = static_cast<const float*>(p.dy) + from.start;
      dy.plane = from.plane;
      dy.line = from.line;
      dy.pixel = from.pixel;
      dy.height = from.height;
      dy.width = from.width;
      dy.channels = item.k_count;
      dy.row = row * kWinogradTile;
      dy.col = col * kWinogradTile;
      dy.tiles = count;
      dy.v = w.data() + at * plan.w_tile;
      dy.v_position = w_position;
      dy.v_tile = plan.w_tile;
      kernels.gradient(dy);
    });
  }

  void add(const Item& item, int64_t count, bool accumulate) const {
    const auto& gemm = gemm_kernels().f32;
    GemmBlock<float> product;
    product.m = item.k_count;
    product.n = product.b_row = product.c_row = plan.v_tile;
    product.panels = ceil_div(product.m, gemm.tile.mr);
    product.a_row = product.b_col = 1;
    product.a_col = plan.w_tile;
    for (int64_t position = 0; position < kWinogradPositions; ++position) {
      product.c = m.data() + position * plan.position;
      for (int64_t t = 0; t < count; t += kChain) {
        product.k = std::min(kChain, count - t);
        product.a = w.data() + position * w_position + t * plan.w_tile;
        product.b = v.data() + position * v_position + t * plan.v_tile;
        product.accumulate = accumulate || t > 0;
        gemm.block(product);
      }
    }
  }

  void sum(const Item& item) const {
    const int64_t begin = tiles.total * item.split / plan.splits;
    const int64_t end = tiles.total * (item.split + 1) / plan.splits;
    for (int64_t t = begin; t < end; t += plan.block) {
      const int64_t count = std::min(plan.block, end - t);
      transform(item, t, t + count);
      add(item, count, t > begin);
    }
  }

  // Adds the transformed sums to dw; false if one was not finite.
  bool finish(const Item& item) const {
    const int64_t cg = p.c / p.g, taps = geometry.taps;
    bool finite = true;
    for (int64_t k = 0; k < item.k_count; ++k) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        WinogradWeightGradient gradient;
        gradient.m = m.data() + k * plan.v_tile + tap * plan.v_tap;
        gradient.m_position = plan.position;
        gradient.accumulate = item.split > 0;
        gradient.channels = item.c_count;
        gradient.plane = p.channels_last ? 1 : taps * 9;
        gradient.tap = p.channels_last ? cg : 1;
        gradient.dw = static_cast<float*>(p.dw) + (item.group * (p.k / p.g) + item.k + k) * cg * taps * 9 +
                      tap * 9 * gradient.tap + item.c * gradient.plane;
        finite &= winograd_kernels().weight_gradient(gradient);
      }
    }
    return finite;
  }
};

}  // namespace

bool winograd_applicable(const ConvBackwardWeightParams& p) {
  constexpr int64_t kMinTiles = 64;  // direct sums over so few positions are exact to the last bits
  return winograd_applicable(static_cast<const ConvGeometry&>(p)) &&
         WinogradGeometry(p).tiles().total >= kMinTiles;
}

void conv_winograd(const ConvBackwardWeightParams& p) {
  const WinogradGeometry geometry(p);
  const WinogradTiles tiles = geometry.tiles();
  const Plan plan(p, tiles);
  const int64_t parts =
      std::clamp<int64_t>(ceil_div(thread_limit(), plan.squares * plan.splits), 1, ceil_div(plan.w_tile, 16));
  const int64_t work =
      tiles.total / plan.splits * kWinogradPositions * plan.v_tile * plan.w_tile / parts / 16;
  SplitQueue queue(plan.squares, plan.splits, parts);
  std::atomic<bool> finite{true};

  parallel_for(queue.size(), ceil_div(kGrain, work + 1), [&](int64_t, int64_t) {
    const Adder adder(p, geometry, tiles, plan);
    for (SplitQueue::Item i; queue.next(i);) {
      const Item item(plan, i, parts);
      adder.sum(item);
      queue.wait(i);
      if (!adder.finish(item)) finite.store(false, std::memory_order_relaxed);
      queue.done(i);
    }
  });
  if (!finite.load()) p.channels_last ? conv_last_dense(p) : conv_outer(p);
}

}  // namespace fastnn::cpu
