// Convolution forward and backward-data, and so the transposed one, over patches (patch.h): a matrix product
// y[K, positions] = w[K, C * taps] * windows[C * taps, positions] whose right side is never written out.
//
// Tiling: images x groups x blocks of output positions go to threads; a block's patch fits the second-level
// cache. Packed weights are read panel by panel (up to 12 output channels), each panel over all columns of
// the block. Without padding and stride the input itself serves as the patch. Backward-data with stride s is
// s convolutions of dy per dimension, one for each phase of the input position, each with the taps that meet
// the phase.
#include <algorithm>
#include <vector>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/patch.h"
#include "cpu/kernels/conv.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

// Half of a small second-level cache.
constexpr int64_t kPatchBytes = 256 << 10;
// Weights that exceed this come from a slower cache for every patch: then several images share one pass over
// them.
constexpr int64_t kLargeWeight = 1 << 20, kPatchesBytes = 768 << 10;

// "in" and "out" are those of this direction: x and y are dy and dx in backward-data.
template <class T>
struct ShiftConv {
  int64_t n, g, in_channels, out_channels;  // channels per group
  TapDim dims[3];
  const T* x;     // [n, g * in_channels, dims[].in]
  const T* bias;  // [g * out_channels] or null
  const T* w;     // element (group, out channel, in channel, tap) by these strides
  int64_t w_group, w_out, w_in, w_tap[3];
  T* y;  // element (channel, position) by these strides
  int64_t y_channel, y_step[3];
};

// Output channels of a group as panels of at most max_rows rows, with little padding.
struct Panels {
  std::vector<int64_t> begin, rows, packed;  // packed: rows of earlier panels, padding included

  template <class T>
  Panels(const ConvKernelsOf<T>& kernels, int64_t channels) {
    int64_t best = 0, best_padded = 0;
    for (int64_t rows : {kernels.max_rows, 8, 6, 4}) {
      if (rows > kernels.max_rows) continue;
      const int64_t rest = channels % rows;
      const int64_t padded = channels - rest + kernels.tile_rows(static_cast<int>(rest));
      if (best == 0 || padded < best_padded) best = rows, best_padded = padded;
    }
    int64_t total = 0;
    for (int64_t i = 0; i < channels; i += best) {
      begin.push_back(i);
      rows.push_back(std::min(best, channels - i));
      packed.push_back(total);
      total += kernels.tile_rows(static_cast<int>(rows.back()));
    }
    packed.push_back(total);
  }
  int64_t count() const { return static_cast<int64_t>(begin.size()); }
};

// [panel, step = (in channel, tap), row of the panel]
template <class T>
void pack_weights(const ShiftConv<T>& p, const Panels& panels, int64_t steps, T* packed) {
  const auto& kernels = conv_kernels_of<T>();
  const int64_t taps = steps / p.in_channels;
  bool in_order = p.w_in == taps;  // then a row of w is a column of the panel
  int64_t stride = 1;
  for (int d = 2; d >= 0; --d) {
    const int64_t count = static_cast<int64_t>(p.dims[d].taps.size());
    for (int64_t i = 0; i < count; ++i) {
      in_order = in_order && p.dims[d].taps[static_cast<size_t>(i)].index * p.w_tap[d] == i * stride;
    }
    stride *= count;
  }
  parallel_for(
      p.g * panels.count(), std::max<int64_t>(1, kGrain / (steps + 1) / 8), [&](int64_t first, int64_t last) {
        for (int64_t item = first; item < last; ++item) {
          const int64_t group = item / panels.count(), panel = item % panels.count();
          const int64_t ld = panels.packed[panel + 1] - panels.packed[panel];
          const T* w = p.w + group * p.w_group + panels.begin[panel] * p.w_out;
          T* out = packed + (group * panels.packed.back() + panels.packed[panel]) * steps;
          if (in_order) {
            kernels.transpose(w, p.w_out, panels.rows[panel], steps, out, ld);
            continue;
          }
          for (int64_t c = 0; c < p.in_channels; ++c) {
            for (const Tap& a : p.dims[0].taps) {
              for (const Tap& b : p.dims[1].taps) {
                for (const Tap& e : p.dims[2].taps) {
                  const T* from =
                      w + c * p.w_in + a.index * p.w_tap[0] + b.index * p.w_tap[1] + e.index * p.w_tap[2];
                  for (int64_t i = 0; i < ld; ++i) *out++ = i < panels.rows[panel] ? from[i * p.w_out] : T(0);
                }
              }
            }
          }
        }
      });
}

// True if x can stand in for the patch of every block: no stride, no padding, and no tile wider than a block.
template <class T>
bool usable_in_place(const ShiftConv<T>& p, const Blocks& blocks) {
  for (const TapDim& dim : p.dims) {
    if (dim.stride != 1 || dim.taps.empty()) return false;
    for (const Tap& tap : dim.taps) {
      if (tap.shift < 0 || tap.shift + dim.out > dim.in) return false;
    }
  }
  int64_t smallest[3];
  for (int d = 0; d < 3; ++d) smallest[d] = blocks.out[d] - (blocks.count[d] - 1) * blocks.size[d];
  const int64_t cols = (smallest[1] - 1) * p.dims[2].in + smallest[2];
  const int64_t image = p.dims[0].in * p.dims[1].in * p.dims[2].in;
  // Many channels a multiple of 4 KiB apart would evict each other from the first-level cache.
  const bool aliased = p.in_channels > 8 && image * static_cast<int64_t>(sizeof(T)) % 4096 == 0;
  return cols >= conv_kernels_of<T>().max_cols && !aliased && p.in_channels * image < INT32_MAX;
}

// One panel of output channels over all columns of a block.
template <class T>
void run_block(const ShiftConv<T>& p, const PatchLayout& layout, const Block& block, ConvPanel<T> panel) {
  const auto& kernels = conv_kernels_of<T>();
  panel.y_channel = p.y_channel;
  panel.y_row = p.y_step[1];
  panel.y_col = p.y_step[2];
  panel.pitch = layout.row_stride();
  panel.width = block.size[2];
  // All rows of a slice in one run, or a run per row where the gaps between rows would cost more.
  const int64_t flat = (block.size[1] - 1) * panel.pitch + panel.width;
  const int64_t by_row = block.size[1] * ceil_div(panel.width, kernels.lanes);
  const int64_t runs = !panel.exact && ceil_div(flat, kernels.lanes) > by_row ? block.size[1] : 1;
  panel.cols = runs > 1 ? panel.width : flat;
  const T* x = panel.x;
  T* y = panel.y;
  for (int64_t slice = 0; slice < block.size[0]; ++slice) {
    for (int64_t run = 0; run < runs; ++run) {
      panel.x = x + slice * layout.slice_stride() + run * panel.pitch;
      panel.y = y + slice * p.y_step[0] + run * panel.y_row;
      kernels.panel(panel);
    }
  }
}

template <class T>
void shift_conv(const ShiftConv<T>& p) {
  const auto& kernels = conv_kernels_of<T>();
  const int64_t esize = sizeof(T), threads = thread_limit();
  int64_t taps = 1, image = 1, positions = 1;
  for (const TapDim& dim : p.dims) {
    taps *= static_cast<int64_t>(dim.taps.size());
    image *= dim.in;
    positions *= dim.out;
  }
  if (positions == 0) return;
  const int64_t steps = p.in_channels * taps;
  const Block block =
      choose_block(p.dims, p.in_channels, esize, kPatchBytes, ceil_div(4 * threads, p.n * p.g));
  const Blocks blocks(p.dims, block);
  const bool in_place = usable_in_place(p, blocks);
  const PatchLayout layout = in_place ? PatchLayout::of_input(p.dims, p.in_channels)
                                      : PatchLayout(p.dims, blocks.size, p.in_channels, esize);
  const std::vector<int32_t> offsets = layout.offsets();

  const Panels panels(kernels, p.out_channels);
  const Scratch<T> packed(p.g * panels.packed.back() * steps + 1);
  pack_weights(p, panels, steps, packed.data());

  const int64_t patch_size = in_place ? p.in_channels * image : layout.elements() + kernels.max_cols;
  const bool large = panels.packed.back() * steps * esize > kLargeWeight;
  const int64_t most = large ? std::clamp<int64_t>(kPatchesBytes / (patch_size * esize), 1, p.n) : 1;
  const int64_t runs = ceil_div(p.n, most), images = ceil_div(p.n, runs);
  // Few blocks: the panels of one are shared out too, each with patches of its own.
  const int64_t whole = ceil_div(p.n, images) * p.g * blocks.total();
  const int64_t parts =
      std::clamp<int64_t>(ceil_div(2 * threads, whole), 1, whole >= threads ? 1 : panels.count());
  const int64_t work =
      images * p.out_channels * (steps + 1) * (positions / blocks.total() + 1) / parts / 16 + 1;

  parallel_for(whole * parts, ceil_div(kGrain, work), [&](int64_t first, int64_t last) {
    const Scratch<T> patches(in_place ? 0 : images * patch_size);
    for (int64_t item = first; item < last; ++item) {
      const int64_t part = item % parts, at = item / parts % blocks.total(),
                    group = item / parts / blocks.total() % p.g;
      const int64_t n = item / parts / blocks.total() / p.g * images, count = std::min(images, p.n - n);
      const Block block = blocks.at(at);
      if (!in_place && steps > 0) {
        for (int64_t i = 0; i < count; ++i) {
          T* patch = patches.data() + i * patch_size;
          layout.fill(p.x + ((n + i) * p.g + group) * p.in_channels * image, p.in_channels, block, patch);
          std::fill_n(patch + layout.elements(), kernels.max_cols, T(0));
        }
      }
      for (int64_t i = panels.count() * part / parts; i < panels.count() * (part + 1) / parts; ++i) {
        ConvPanel<T> panel;
        panel.offset = offsets.data();
        panel.steps = steps;
        panel.a = packed.data() + (group * panels.packed.back() + panels.packed[i]) * steps;
        panel.rows = static_cast<int>(panels.rows[i]);
        panel.bias = p.bias == nullptr ? nullptr : p.bias + group * p.out_channels + panels.begin[i];
        panel.exact = in_place;
        for (int64_t j = 0; j < count; ++j) {
          const int64_t plane = (n + j) * p.g + group;
          panel.x = patches.data() + j * patch_size;
          if (in_place) {
            const int64_t row = block.begin[0] * p.dims[1].in + block.begin[1];
            panel.x = p.x + plane * p.in_channels * image + row * p.dims[2].in + block.begin[2];
          }
          panel.y = p.y + (plane * p.out_channels + panels.begin[i]) * p.y_channel;
          for (int d = 0; d < 3; ++d) panel.y += block.begin[d] * p.y_step[d];
          run_block(p, layout, block, panel);
        }
      }
    }
  });
}

int64_t product(const int64_t (&v)[3]) {
  return v[0] * v[1] * v[2];
}

template <class T>
void forward(const ConvForwardParams& p) {
  const int64_t taps = product(p.kernel), cg = p.c / p.g, kg = p.k / p.g;
  ShiftConv<T> s{p.n,
                 p.g,
                 cg,
                 kg,
                 {},
                 static_cast<const T*>(p.x),
                 static_cast<const T*>(p.b),
                 static_cast<const T*>(p.w),
                 kg * cg * taps,
                 cg * taps,
                 taps,
                 {},
                 static_cast<T*>(p.y),
                 product(p.out),
                 {}};
  int64_t y_step = 1, w_tap = 1;
  for (int d = 2; d >= 0; --d) {
    s.dims[d] = {p.in[d], p.out[d], p.stride[d], {}};
    for (int64_t r = 0; r < p.kernel[d]; ++r) s.dims[d].taps.push_back({r * p.dilation[d] - p.padding[d], r});
    s.y_step[d] = y_step;
    s.w_tap[d] = w_tap;
    y_step *= p.out[d];
    w_tap *= p.kernel[d];
  }
  shift_conv(s);
}

// The positions a + t * stride of dx in one dimension: o * stride + r * dilation - padding = a + t * stride
// for the taps r that leave no remainder, with o = t + shift.
TapDim phase_dim(const ConvGeometry& p, int d, int64_t a) {
  TapDim dim{p.out[d], ceil_div(std::max<int64_t>(p.in[d] - a, 0), p.stride[d]), 1, {}};
  for (int64_t r = 0; r < p.kernel[d]; ++r) {
    const int64_t distance = a + p.padding[d] - r * p.dilation[d];
    if (distance % p.stride[d] == 0) dim.taps.push_back({distance / p.stride[d], r});
  }
  return dim;
}

template <class T>
void backward_data(const ConvBackwardDataParams& p) {
  const int64_t taps = product(p.kernel), cg = p.c / p.g, kg = p.k / p.g;
  const int64_t step[3] = {p.in[1] * p.in[2], p.in[2], 1};
  for (int64_t phase = 0; phase < product(p.stride); ++phase) {
    const int64_t a[3] = {phase / p.stride[2] / p.stride[1], phase / p.stride[2] % p.stride[1],
                          phase % p.stride[2]};
    ShiftConv<T> s{p.n,
                   p.g,
                   kg,
                   cg,
                   {},
                   static_cast<const T*>(p.dy),
                   static_cast<const T*>(p.b),
                   static_cast<const T*>(p.w),
                   kg * cg * taps,
                   taps,
                   cg * taps,
                   {},
                   static_cast<T*>(p.dx),
                   product(p.in),
                   {}};
    for (int d = 0; d < 3; ++d) {
      s.dims[d] = phase_dim(p, d, a[d]);
      s.y_step[d] = step[d] * p.stride[d];
      s.y += a[d] * step[d];
    }
    s.w_tap[0] = p.kernel[1] * p.kernel[2];
    s.w_tap[1] = p.kernel[2];
    s.w_tap[2] = 1;
    shift_conv(s);
  }
}

}  // namespace

void conv_shift(const ConvForwardParams& p) {
  p.dtype == DType::kFloat64 ? forward<double>(p) : forward<float>(p);
}

void conv_shift(const ConvBackwardDataParams& p) {
  p.dtype == DType::kFloat64 ? backward_data<double>(p) : backward_data<float>(p);
}

}  // namespace fastnn::cpu
