// Gradient of a convolution's weight with channels last: dw[k, tap, c] = sum over pixels of dy[pixel, k] *
// x[pixel at tap, c].
//
// Both operands of a pixel are contiguous, so a register tile (ConvProducts) reads them where they lie: rows
// of one by registers of the other, whichever way round fills the registers better. Images are cut into
// blocks of output positions whose input fits the cache. A split, a fixed run of blocks, has a result of its
// own, which is added to dw in its turn. Splits depend on shapes alone, so the bits do not depend on the
// number of threads.
#include <algorithm>
#include <vector>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/last.h"
#include "cpu/conv/split_queue.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kPatchBytes = 256 << 10;  // half of a small second-level cache
constexpr int64_t kPatchesBytes = 1 << 20;  // of several images, where a pass over a large dw is dear
constexpr int64_t kPartialBytes = 2 << 20;  // results of all splits: adding them up must stay cheap
constexpr int64_t kMaxSplits = 32;          // enough to share out
constexpr int64_t kChain = 64;              // positions that are added up in registers

int64_t product(const int64_t (&v)[3]) {
  return v[0] * v[1] * v[2];
}

// Without padding and stride one tap makes all positions one row.
ConvGeometry flattened(ConvGeometry p) {
  for (int d = 0; d < 3; ++d) {
    if (p.kernel[d] != 1 || p.stride[d] != 1 || p.padding[d] != 0) return p;
  }
  // Rows of the last dimension stay: they are where chains of additions end.
  p.in[1] = p.out[1] = p.n * p.in[0] * p.in[1];
  p.n = p.in[0] = p.out[0] = 1;
  return p;
}

// Which operand lies in registers, and the tiles over the two.
struct Tiling {
  bool x_lanes;  // dw rows are k, registers hold (tap, c); otherwise the other way round
  int width;     // registers of a tile

  template <class T>
  Tiling(const ConvLastKernelsOf<T>& kernels, const std::vector<ConvRun>& runs, int64_t kg, bool x_spread,
         bool dy_spread) {
    int other = 1;
    int64_t of_x = 0, of_dy = 0;
    for (const ConvRun& run : runs) {
      of_x +=
          tile_cost(kernels.max_height, kernels.max_vectors, kg, ceil_div(run.length, kernels.lanes), &width);
      of_dy +=
          tile_cost(kernels.max_height, kernels.max_vectors, run.length, ceil_div(kg, kernels.lanes), &other);
    }
    // The registers' side is the one that is to stay in the first-level cache: not one whose pixels are a
    // large power of two apart.
    if (x_spread != dy_spread) (x_spread ? of_dy : of_x) += of_x / 8;
    x_lanes = of_x <= of_dy;
    if (!x_lanes) width = other;
  }
};

// The operands of the next block, which are asked for while this one is multiplied.
template <class T>
struct Ahead {
  static constexpr int64_t kLine = 64 / sizeof(T);
  struct Range {
    const T* at;
    int64_t lines;
  } ranges[2];

  Ahead(const T* x, int64_t x_size, const T* dy, int64_t dy_size)
      : ranges{{x, ceil_div(x_size, kLine)}, {dy, ceil_div(dy_size, kLine)}} {}

  // The share of a call over so many positions.
  void give(ConvProducts<T>& call, int64_t positions) {
    Range& range = ranges[ranges[0].lines > 0 ? 0 : 1];
    call.ahead = range.at;
    call.ahead_step = range.lines > 0 ? kLine : 0;
    range.at += positions * call.ahead_step;
    range.lines -= positions;
  }
};

// acc[row, lane] += for all rows and lanes of one block, some kChain positions at a time: those of one panel
// of b stay in the first-level cache while all of a passes.
template <class T>
void add_products(const ConvLastKernelsOf<T>& kernels, const ConvProducts<T>& all, int64_t height,
                  int64_t length, int width, Ahead<T>& ahead) {
  const int64_t vectors = ceil_div(length, kernels.lanes), panels = ceil_div(vectors, width);
  const int64_t rows = std::clamp<int64_t>(kChain / all.cols, 1, all.rows),
                images = std::clamp<int64_t>(kChain / (all.cols * all.rows), 1, all.images);
  ConvProducts<T> call = all;
  for (int64_t j = 0; j < panels; ++j) {
    const Part panel(vectors, j, panels);
    const int64_t first = panel.begin * kernels.lanes;
    call.vectors = static_cast<int>(panel.size);
    call.last =
        static_cast<int>(std::min<int64_t>(kernels.lanes, length - first - (panel.size - 1) * kernels.lanes));
    const int64_t tiles = ceil_div(height, kernels.max_height(call.vectors));
    for (int64_t n = 0; n < all.images; n += images) {
      for (int64_t row = 0; row < all.rows; row += rows) {
        call.images = std::min(images, all.images - n);
        call.rows = std::min(rows, all.rows - row);
        call.b = all.b + n * all.b_image + row * all.b_row + first;
        for (int64_t i = 0; i < tiles; ++i) {
          const Part tile(height, i, tiles);
          call.height = static_cast<int>(tile.size);
          call.a = all.a + n * all.a_image + row * all.a_row + tile.begin;
          call.acc = all.acc + tile.begin * call.acc_row + first;
          ahead.give(call, call.images * call.rows * call.cols);
          kernels.products(call);
        }
      }
    }
  }
}

// Zeros for the output channels [k, k + count) of a group.
template <class T>
void clear(T* acc, bool x_lanes, int64_t steps, int64_t kg, int64_t k, int64_t count) {
  if (x_lanes) {
    std::fill_n(acc + k * steps, count * steps, T(0));
  } else {
    for (int64_t s = 0; s < steps; ++s) std::fill_n(acc + s * kg + k, count, T(0));
  }
}

// Adds the output channels [k, k + count) of a group to dw, or sets them.
template <class T>
void add(const T* acc, bool x_lanes, int64_t steps, int64_t kg, int64_t k, int64_t count, bool accumulate,
         T* dw) {
  constexpr int64_t kTile = 16;  // steps at a time where acc lies along the other dimension
  for (int64_t begin = 0; begin < steps; begin += x_lanes ? steps : kTile) {
    const int64_t end = x_lanes ? steps : std::min(steps, begin + kTile);
    for (int64_t row = k; row < k + count; ++row) {
      T* out = dw + row * steps;
      for (int64_t i = begin; i < end; ++i) {
        const T value = x_lanes ? acc[row * steps + i] : acc[i * kg + row];
        out[i] = accumulate ? out[i] + value : value;
      }
    }
  }
}

// A share of the registers of output channels, group by group: f(group, k, channels).
template <class F>
void for_each_group(const Part& share, int64_t vectors, int64_t lanes, int64_t kg, const F& f) {
  for (int64_t vector = share.begin; vector < share.begin + share.size;) {
    const int64_t group = vector / vectors, k = vector % vectors * lanes;
    const int64_t end = std::min((group + 1) * vectors, share.begin + share.size);
    f(group, k, std::min(kg, k + (end - vector) * lanes) - k);
    vector = end;
  }
}

template <class T>
void backward_weight(const ConvBackwardWeightParams& params) {
  const ConvGeometry p = flattened(params);
  const auto& kernels = conv_last_kernels_of<T>();
  const int64_t cg = p.c / p.g, kg = p.k / p.g, steps = cg * product(p.kernel), esize = sizeof(T);
  const int64_t x_image = p.c * product(p.in), dy_image = p.k * product(p.out);
  const std::vector<Phase> phases = forward_phases(p);
  const int64_t size = p.k * steps;
  const int64_t fit = std::clamp<int64_t>(kPartialBytes / (size * esize), 1, kMaxSplits);
  const Blocks blocks(phases[0].dims,
                      choose_block(phases[0].dims, p.c, esize, kPatchBytes, ceil_div(fit, p.n)));
  const PixelPatch patch(phases, blocks.size, p.c, p.g, esize);
  const std::vector<ConvRun> runs = patch.runs(phases[0]);
  const Tiling tiling(kernels, runs, kg, p.stride[2] * patch.step(2) * esize % 512 != 0,
                      p.k * esize % 512 != 0);

  const int64_t per_image = patch.in_place() ? x_image : patch.elements();
  const int64_t most =
      fit >= p.n || blocks.total() > 1 ? 1 : std::clamp<int64_t>(kPatchesBytes / (per_image * esize), 1, p.n);
  const int64_t image_sets = ceil_div(p.n, most), units = image_sets * blocks.total();
  const int64_t splits = std::min(units, fit);
  // Few splits: registers of output channels are shared out too, each share with patches of its own.
  const int64_t threads = thread_limit(), vectors = ceil_div(kg, kernels.lanes);
  const int64_t parts = std::clamp<int64_t>(ceil_div(2 * threads, splits), 1, ceil_div(p.g * vectors, 2));

  SplitQueue queue(1, splits, parts);
  const int64_t work = p.n * product(p.out) / splits * p.k * steps / parts / 16 + 1;
  parallel_for(queue.size(), ceil_div(kGrain, work), [&](int64_t, int64_t) {
    const Scratch<T> patches(most * patch.elements() + 1), sums(size);
    for (SplitQueue::Item item; queue.next(item);) {
      const Part share(p.g * vectors, item.part, parts), my_units(units, item.split, splits);
      for (int64_t unit = my_units.begin; unit < my_units.begin + my_units.size; ++unit) {
        const Part images(p.n, unit / blocks.total(), image_sets);
        const Block block = blocks.at(unit % blocks.total());
        const T* x = static_cast<const T*>(params.x) + images.begin * x_image;
        for (int64_t i = 0; i < images.size; ++i)
          patch.fill(x + i * x_image, block, patches.data() + i * patch.elements());
        x = patch.origin(x, block, patches.data());
        const T* dy = static_cast<const T*>(params.dy) + images.begin * dy_image +
                      ((block.begin[0] * p.out[1] + block.begin[1]) * p.out[2] + block.begin[2]) * p.k;
        // Blocks of whole rows of one image, in place, follow each other in memory.
        const bool next = patch.in_place() && unit + 1 < my_units.begin + my_units.size;
        const int64_t positions = next ? block.size[1] * block.size[2] : 0;
        Ahead<T> ahead(x + positions * p.stride[1] * p.stride[2] * p.c,
                       positions * p.stride[1] * p.stride[2] * p.c, dy + positions * p.k, positions * p.k);
        for_each_group(share, vectors, kernels.lanes, kg, [&](int64_t group, int64_t k, int64_t k_count) {
          T* acc = sums.data() + group * kg * steps;
          if (unit == my_units.begin) clear(acc, tiling.x_lanes, steps, kg, k, k_count);
          for (int64_t slice = 0; slice < block.size[0]; ++slice) {
            int64_t step = 0;
            for (const ConvRun& run : runs) {
              ConvProducts<T> call;
              call.images = images.size, call.rows = block.size[1], call.cols = block.size[2];
              call.a = dy + slice * p.out[1] * p.out[2] * p.k + group * kg + k;
              call.a_image = dy_image, call.a_row = p.out[2] * p.k, call.a_col = p.k;
              call.b = x + slice * p.stride[0] * patch.step(0) + run.offset + group * cg;
              call.b_image = per_image, call.b_row = p.stride[1] * patch.step(1);
              call.b_col = p.stride[2] * patch.step(2);
              if (tiling.x_lanes) {
                call.acc = acc + k * steps + step;
                call.acc_row = steps;
                add_products(kernels, call, k_count, run.length, tiling.width, ahead);
              } else {
                std::swap(call.a, call.b), std::swap(call.a_image, call.b_image);
                std::swap(call.a_row, call.b_row), std::swap(call.a_col, call.b_col);
                call.acc = acc + step * kg + k;
                call.acc_row = kg;
                add_products(kernels, call, run.length, k_count, tiling.width, ahead);
              }
              step += run.length;
            }
          }
        });
      }
      queue.wait(item);
      for_each_group(share, vectors, kernels.lanes, kg, [&](int64_t group, int64_t k, int64_t k_count) {
        const int64_t at = group * kg * steps;
        add(sums.data() + at, tiling.x_lanes, steps, kg, k, k_count, item.split > 0,
            static_cast<T*>(params.dw) + at);
      });
      queue.done(item);
    }
  });
}

}  // namespace

void conv_last_dense(const ConvBackwardWeightParams& p) {
  p.dtype == DType::kFloat64 ? backward_weight<double>(p) : backward_weight<float>(p);
}

}  // namespace fastnn::cpu
