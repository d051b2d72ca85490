// Gradient of a convolution's weight: dw[k, c, r] = sum over images and output positions of dy[k] * x[c]
// shifted by tap r.
//
// Images are cut into blocks of output positions whose patch (patch.h) fits the cache. A split, a fixed run
// of blocks, adds into a partial result [group, (c, r), k] of its own; partial results are added up in order.
// Splits depend on shapes alone, so the bits do not depend on the number of threads. Two inner loops: outer:
// about 128 positions of dy are transposed to [position, k]; 6 rows (c, r) x registers of k. dot:   registers
// run along output rows and are folded at the end of a block; for few channels or few taps.
#include <algorithm>
#include <vector>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/patch.h"
#include "cpu/kernels/conv.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kPatchBytes = 256 << 10;  // half of a small second-level cache
constexpr int64_t kPartialBytes = 2 << 20;  // all partial results: adding them up must stay cheap
constexpr int64_t kMaxSplits = 32;          // enough to share out
constexpr int64_t kMinSteps = 256;    // rows (c, r) below which the transposed dy is not worth another copy
constexpr int64_t kTransposed = 128;  // positions: with 4 registers of k half of the first-level cache

int64_t product(const int64_t (&v)[3]) {
  return v[0] * v[1] * v[2];
}

struct Shape {
  int64_t cg, kg, taps, in, out;
  explicit Shape(const ConvGeometry& p)
      : cg(p.c / p.g), kg(p.k / p.g), taps(product(p.kernel)), in(product(p.in)), out(product(p.out)) {}
};

// One block: adds its products to acc, rows (c, r) of acc_row values of k.
template <class T>
struct BlockSums {
  const T* patch;
  const int32_t* offsets;
  int64_t steps, row_stride, slice_stride;
  const T* dy;  // at the first position of the block
  int64_t dy_channel, dy_slice, dy_row;
  int64_t channels, size[3];
  T* acc;
  int64_t acc_row;
};

template <class T>
void add_dot(const BlockSums<T>& b, T*) {
  for (int64_t slice = 0; slice < b.size[0]; ++slice) {
    conv_kernels_of<T>().dot({b.patch + slice * b.slice_stride, b.offsets, b.steps, b.size[1], b.size[2],
                              b.row_stride, b.dy + slice * b.dy_slice, b.channels, b.dy_channel, b.dy_row,
                              b.acc, b.acc_row});
  }
}

template <class T>
void add_outer(const BlockSums<T>& b, T* transposed) {
  const auto& kernels = conv_kernels_of<T>();
  const int64_t vectors = b.acc_row / kernels.lanes, panels = ceil_div(vectors, kernels.max_vectors);
  const int64_t cols = std::min(b.size[2], kTransposed),
                rows = std::clamp<int64_t>(kTransposed / cols, 1, b.size[1]);
  for (int64_t slice = 0; slice < b.size[0]; ++slice) {
    for (int64_t r = 0; r < b.size[1]; r += rows) {
      for (int64_t q = 0; q < b.size[2]; q += cols) {
        const int64_t nr = std::min(rows, b.size[1] - r), nq = std::min(cols, b.size[2] - q);
        for (int64_t panel = 0; panel < panels; ++panel) {
          const int64_t first = vectors * panel / panels, count = vectors * (panel + 1) / panels - first;
          const int64_t k = first * kernels.lanes, ld = count * kernels.lanes;
          for (int64_t i = 0; i < nr; ++i) {
            kernels.transpose(b.dy + k * b.dy_channel + slice * b.dy_slice + (r + i) * b.dy_row + q,
                              b.dy_channel, std::min(ld, b.channels - k), nq, transposed + i * nq * ld, ld);
          }
          kernels.outer({b.patch + slice * b.slice_stride + r * b.row_stride + q, b.offsets, b.steps, nr, nq,
                         b.row_stride, transposed, static_cast<int>(count), b.acc + k, b.acc_row});
        }
      }
    }
  }
}

template <class T>
void sum_splits(const ConvBackwardWeightParams& p, const T* partial, int64_t splits, int64_t acc_row) {
  const Shape s(p);
  const int64_t steps = s.cg * s.taps, split_size = p.g * steps * acc_row;
  constexpr int64_t kTile = 16;  // rows at a time: the results are written along the other dimension
  const int64_t tiles = ceil_div(steps, kTile);
  parallel_for(p.g * tiles, ceil_div(kGrain, kTile * s.kg * splits), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t group = item / tiles, begin = item % tiles * kTile, end = std::min(steps, begin + kTile);
      T* dw = static_cast<T*>(p.dw) + group * s.kg * steps;
      for (int64_t k = 0; k < s.kg; ++k) {
        for (int64_t i = begin; i < end; ++i) {
          T sum = 0;
          for (int64_t split = 0; split < splits; ++split) {
            sum += partial[split * split_size + (group * steps + i) * acc_row + k];
          }
          dw[k * steps + i] = sum;
        }
      }
    }
  });
}

template <class T, class Add>
void backward_weight(const ConvBackwardWeightParams& p, int64_t acc_row, int64_t min_steps, int64_t scratch,
                     const Add& add) {
  const Shape s(p);
  const int64_t esize = sizeof(T), steps = s.cg * s.taps;
  TapDim dims[3];
  for (int d = 0; d < 3; ++d) {
    dims[d] = {p.in[d], p.out[d], p.stride[d], {}};
    for (int64_t r = 0; r < p.kernel[d]; ++r) dims[d].taps.push_back({r * p.dilation[d] - p.padding[d], r});
  }
  const int64_t split_size = p.g * steps * acc_row;
  const int64_t fit = std::clamp<int64_t>(kPartialBytes / (split_size * esize), 1, kMaxSplits);
  // Input channels are shared out too, where splits and groups do not give enough to do.
  const int64_t share = std::clamp<int64_t>(steps / min_steps, 1, s.cg);
  const int64_t channels = ceil_div(s.cg, std::min(share, ceil_div(kMaxSplits, std::min(fit, p.n) * p.g)));
  const int64_t parts = ceil_div(s.cg, channels);
  const Blocks blocks(dims, choose_block(dims, channels, esize, kPatchBytes, ceil_div(fit, p.n * p.g)));
  const PatchLayout layout(dims, blocks.size, channels, esize);
  const std::vector<int32_t> offsets = layout.offsets();
  const int64_t units = p.n * blocks.total(), splits = std::min(units, fit);

  const Scratch<T> partial(splits * split_size);
  const int64_t work = units / splits * (s.out / blocks.total() + 1) * s.kg * channels * s.taps / 16 + 1;
  parallel_for(splits * p.g * parts, ceil_div(kGrain, work), [&](int64_t first, int64_t last) {
    const Scratch<T> patch(layout.elements()), extra(scratch + 1);
    for (int64_t item = first; item < last; ++item) {
      const int64_t part = item % parts, group = item / parts % p.g, split = item / parts / p.g;
      const int64_t c = part * channels, count = std::min(channels, s.cg - c);
      BlockSums<T> sums;
      sums.patch = patch.data();
      sums.offsets = offsets.data();
      sums.steps = count * s.taps;
      sums.row_stride = layout.row_stride();
      sums.slice_stride = layout.slice_stride();
      sums.dy_channel = s.out;
      sums.dy_slice = p.out[1] * p.out[2];
      sums.dy_row = p.out[2];
      sums.channels = s.kg;
      sums.acc = partial.data() + split * split_size + (group * steps + c * s.taps) * acc_row;
      sums.acc_row = acc_row;
      std::fill_n(sums.acc, sums.steps * acc_row, T(0));
      for (int64_t unit = units * split / splits; unit < units * (split + 1) / splits; ++unit) {
        const int64_t n = unit / blocks.total();
        const Block block = blocks.at(unit % blocks.total());
        layout.fill(static_cast<const T*>(p.x) + (n * p.c + group * s.cg + c) * s.in, count, block,
                    patch.data());
        sums.dy = static_cast<const T*>(p.dy) + (n * p.k + group * s.kg) * s.out +
                  (block.begin[0] * p.out[1] + block.begin[1]) * p.out[2] + block.begin[2];
        std::copy_n(block.size, 3, sums.size);
        add(sums, extra.data());
      }
    }
  });
  sum_splits(p, partial.data(), splits, acc_row);
}

template <class T>
void outer(const ConvBackwardWeightParams& p) {
  const auto& kernels = conv_kernels_of<T>();
  backward_weight<T>(p, ceil_div(p.k / p.g, kernels.lanes) * kernels.lanes, kMinSteps,
                     kTransposed * kernels.max_vectors * kernels.lanes, add_outer<T>);
}

template <class T>
void dot(const ConvBackwardWeightParams& p) {
  backward_weight<T>(p, p.k / p.g, 1, 0, add_dot<T>);
}

}  // namespace

void conv_outer(const ConvBackwardWeightParams& p) {
  p.dtype == DType::kFloat64 ? outer<double>(p) : outer<float>(p);
}

void conv_dot(const ConvBackwardWeightParams& p) {
  p.dtype == DType::kFloat64 ? dot<double>(p) : dot<float>(p);
}

}  // namespace fastnn::cpu
