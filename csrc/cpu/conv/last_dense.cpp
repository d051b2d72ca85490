// Convolution forward and backward-data with channels last: a matrix product y[pixel, K] = x[pixel, steps]
// w[steps, K] whose left side is never written out; a step is one channel of one tap.
//
// Tiling: images x blocks of output positions go to threads; a block's input, copied with its
// padding where it has any (last.h), fits the second-level cache. Weights are packed [step, K] by panels of
// up to 4 registers and by blocks of steps, after which sums go back to y. Small weights pass whole over a
// piece of a row at a time, so that y is written pixel by pixel; large ones block by block over all pixels.
// Rows of taps that meet nothing but padding are left out: a third of the work for 12x12 dx of 5x5 kernels.
#include <algorithm>
#include <vector>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/last.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kPatchBytes = 256 << 10;  // half of a small second-level cache
// Weights beyond this pass over all pixels of several images, whose patches then stay in the cache.
constexpr int64_t kLargeWeight = 512 << 10, kPatchesBytes = 768 << 10;
constexpr int64_t kSteps = 128;  // a chain of so many additions rounds no worse than torch's
constexpr int64_t kPiece = 4;    // tiles in a piece of a row

// "in" and "out" are those of this direction: x and y are dy and dx in backward-data.
template <class T>
struct PixelConv {
  int64_t n, g, in_channels, out_channels;  // channels per group
  std::vector<Phase> phases;
  int64_t out[3], out_step[3];  // all positions of y; from one of a phase to the next
  const T* x;                   // [n, dims[].in, g * in_channels]
  const T* bias;                // [g * out_channels] or null
  const T* w;                   // element (group, out channel, in channel, tap) by these strides
  int64_t w_group, w_out, w_in, w_tap[3];
  T* y;  // [n, out, g * out_channels]
};

// One phase ready to run.
struct Plan {
  int64_t steps, blocks;      // of steps
  int outer;                  // the first dimension with more than one tap, 0 or 1
  std::vector<ConvRun> runs;  // of all blocks, one after the other
  std::vector<int64_t> first_run;
  int64_t packed;  // where its weights begin
};

Plan make_plan(const Phase& phase, const PixelPatch& patch, int64_t channels) {
  Plan plan{};
  plan.steps = phase.taps() * channels;
  plan.outer = phase.dims[0].taps.size() > 1 ? 0 : 1;
  plan.blocks = std::max<int64_t>(1, ceil_div(plan.steps, kSteps));
  const std::vector<ConvRun> whole = patch.runs(phase);
  size_t at = 0;
  int64_t used = 0;  // of whole[at]
  for (int64_t i = 0; i < plan.blocks; ++i) {
    plan.first_run.push_back(static_cast<int64_t>(plan.runs.size()));
    for (int64_t left = Part(plan.steps, i, plan.blocks).size; left > 0;) {
      const int64_t length = std::min(left, whole[at].length - used);
      plan.runs.push_back({whole[at].offset + used, length});
      left -= length, used += length;
      if (used == whole[at].length) ++at, used = 0;
    }
  }
  plan.first_run.push_back(static_cast<int64_t>(plan.runs.size()));
  return plan;
}

// The steps whose taps along the outer dimension meet the input from position `at` on: the others read
// padding.
struct Steps {
  int64_t begin, end;
  Steps(const Phase& phase, const Plan& plan, int64_t at) : begin(0), end(0) {
    const TapDim& dim = phase.dims[plan.outer];
    if (dim.taps.empty()) return;
    const int64_t each = plan.steps / static_cast<int64_t>(dim.taps.size());
    for (const Tap& tap : dim.taps) {
      const int64_t from = at * dim.stride + tap.shift;
      begin += from < 0 ? each : 0;
      end += from < dim.in ? each : 0;
    }
    begin = std::min(begin, end);
  }
};

// What is left of a block of steps that begins with `first`: the steps [begin, end) of it.
template <class T>
void cut(ConvPixels<T>& call, int64_t first, int64_t begin, int64_t end, int64_t lanes,
         std::vector<ConvRun>& runs) {
  runs.clear();
  int64_t step = first;
  for (int64_t i = 0; i < call.run_count; ++i) {
    const ConvRun& run = call.runs[i];
    const int64_t skipped = std::clamp<int64_t>(begin - step, 0, run.length);
    const int64_t length = std::clamp<int64_t>(end - step, skipped, run.length) - skipped;
    if (length > 0) runs.push_back({run.offset + skipped, length});
    step += run.length;
  }
  call.runs = runs.data();
  call.run_count = static_cast<int64_t>(runs.size());
  call.w += (begin - first) * call.vectors * lanes;
}

// [block of steps, panel, step, lanes of the panel]
template <class T>
void pack_weights(const PixelConv<T>& p, const Phase& phase, const Plan& plan, int64_t vectors,
                  int64_t panels, int64_t group_size, T* packed) {
  const auto& kernels = conv_last_kernels_of<T>();
  const int64_t lanes = kernels.lanes, ld = vectors * lanes, taps = phase.taps();
  const int64_t size[2] = {static_cast<int64_t>(phase.dims[1].taps.size()),
                           static_cast<int64_t>(phase.dims[2].taps.size())};
  parallel_for(p.g * taps, ceil_div(kGrain, p.in_channels * ld), [&](int64_t first_item, int64_t last_item) {
    for (int64_t item = first_item; item < last_item; ++item) {
      const int64_t group = item / taps, tap = item % taps;
      const int64_t at[3] = {tap / size[1] / size[0], tap / size[1] % size[0], tap % size[1]};
      const T* w = p.w + group * p.w_group;
      for (int d = 0; d < 3; ++d) w += phase.dims[d].taps[static_cast<size_t>(at[d])].index * p.w_tap[d];
      for (int64_t i = 0; i < plan.blocks; ++i) {
        const Part block(plan.steps, i, plan.blocks);
        const int64_t first = std::max(block.begin, tap * p.in_channels),
                      last = std::min(block.begin + block.size, (tap + 1) * p.in_channels);
        if (first >= last) continue;
        for (int64_t j = 0; j < panels; ++j) {
          const Part panel(vectors, j, panels);
          const int64_t k = panel.begin * lanes, width = panel.size * lanes;
          kernels.pack(
              w + (first - tap * p.in_channels) * p.w_in + k * p.w_out, p.w_in, p.w_out, last - first,
              std::min(width, p.out_channels - k),
              packed + group * group_size + block.begin * ld + block.size * k + (first - block.begin) * width,
              width);
        }
      }
    }
  });
}

template <class T>
void pixel_conv(const PixelConv<T>& p) {
  const auto& kernels = conv_last_kernels_of<T>();
  const int64_t esize = sizeof(T), threads = thread_limit();
  int64_t image = p.g * p.in_channels, positions = 1, out_image = p.g * p.out_channels;
  TapDim dims[3];  // of all phases together: for the size of blocks
  for (int d = 0; d < 3; ++d) {
    dims[d] = p.phases[0].dims[d];
    for (const Phase& phase : p.phases) {
      if (phase.dims[d].taps.size() > dims[d].taps.size()) dims[d].taps = phase.dims[d].taps;
    }
    image *= dims[d].in;
    positions *= dims[d].out;
    out_image *= p.out[d];
  }
  const Blocks blocks(
      dims, choose_block(dims, p.g * p.in_channels, esize, kPatchBytes, ceil_div(4 * threads, p.n)));
  const PixelPatch patch(p.phases, blocks.size, p.g * p.in_channels, p.g, esize);

  const int64_t vectors = ceil_div(p.out_channels, kernels.lanes);
  int width = 1;
  tile_cost(kernels.max_height, kernels.max_vectors, blocks.size[2], vectors, &width);
  const int64_t panels = ceil_div(vectors, width);
  std::vector<Plan> plans;
  int64_t weights = 0, steps = 0;
  for (const Phase& phase : p.phases) {
    plans.push_back(make_plan(phase, patch, p.in_channels));
    plans.back().packed = weights;
    weights += p.g * plans.back().steps * vectors * kernels.lanes;
    steps += plans.back().steps;
  }
  const Scratch<T> packed(weights + 1);
  for (size_t i = 0; i < plans.size(); ++i)
    pack_weights(p, p.phases[i], plans[i], vectors, panels, plans[i].steps * vectors * kernels.lanes,
                 packed.data() + plans[i].packed);

  const bool large = weights * esize > kLargeWeight;
  const int64_t patch_size = patch.elements(), block_size = patch.in_place() ? image : patch_size;
  const int64_t most =
      large ? std::clamp<int64_t>(kPatchesBytes / (block_size * esize + 1), 1, ceil_div(p.n, threads)) : 1;
  const int64_t image_sets = ceil_div(p.n, most);
  // Few blocks: the panels of one are shared out too, each with patches of its own.
  const int64_t whole = image_sets * blocks.total(), all_panels = p.g * panels;
  const int64_t parts =
      std::clamp<int64_t>(ceil_div(2 * threads, whole), 1, whole >= threads ? 1 : all_panels);
  const int64_t work =
      p.n * positions / image_sets / blocks.total() * p.g * p.out_channels * (steps + 1) / parts / 16 + 1;

  parallel_for(whole * parts, ceil_div(kGrain, work), [&](int64_t first, int64_t last) {
    const Scratch<T> patches(most * patch_size + 1);
    std::vector<ConvRun> inside;
    for (int64_t item = first; item < last; ++item) {
      const Part images(p.n, item / parts / blocks.total(), image_sets);
      const Part my_panels(all_panels, item % parts, parts);
      const Block block = blocks.at(item / parts % blocks.total());
      const T* x = p.x + images.begin * image;
      for (int64_t i = 0; i < images.size; ++i)
        patch.fill(x + i * image, block, patches.data() + i * patch_size);

      for (size_t i = 0; i < plans.size(); ++i) {
        const Phase& phase = p.phases[i];
        const Plan& plan = plans[i];
        int64_t size[3], y_step[3], step = p.g * p.out_channels;
        T* y = p.y + images.begin * out_image;
        for (int d = 2; d >= 0; --d) {
          size[d] = std::clamp<int64_t>(phase.dims[d].out - block.begin[d], 0, block.size[d]);
          y += (phase.begin[d] + block.begin[d] * p.out_step[d]) * step;
          y_step[d] = step * p.out_step[d];
          step *= p.out[d];
        }
        const int64_t pieces = ceil_div(size[2], kPiece * kernels.max_height(width));
        const int64_t rows = images.size * size[0] * size[1];
        const int64_t units = rows * pieces, run = large ? std::max<int64_t>(units, 1) : 1;
        for (int64_t begin = 0; begin < units; begin += run) {
          for (int64_t j = my_panels.begin; j < my_panels.begin + my_panels.size; ++j) {
            const int64_t group = j / panels;
            const Part panel(vectors, j % panels, panels);
            const int64_t k = panel.begin * kernels.lanes;
            ConvPixels<T> call;
            call.x_col = patch.step(2) * phase.dims[2].stride;
            call.vectors = static_cast<int>(panel.size);
            call.last = static_cast<int>(
                std::min<int64_t>(kernels.lanes, p.out_channels - k - (panel.size - 1) * kernels.lanes));
            call.bias = p.bias == nullptr ? nullptr : p.bias + group * p.out_channels + k;
            call.y_col = y_step[2];
            for (int64_t b = 0; b < plan.blocks; ++b) {
              const Part steps(plan.steps, b, plan.blocks);
              call.runs = plan.runs.data() + plan.first_run[static_cast<size_t>(b)];
              call.run_count =
                  plan.first_run[static_cast<size_t>(b) + 1] - plan.first_run[static_cast<size_t>(b)];
              call.w = packed.data() + plan.packed +
                       (group * plan.steps + steps.begin) * vectors * kernels.lanes + steps.size * k;
              call.stream = patch.in_place() && p.g == 1 && phase.taps() == 1 && phase.dims[2].stride == 1;
              call.ahead = steps.begin;
              for (int64_t u = begin; u < begin + run; ++u) {
                const Part piece(size[2], u % pieces, pieces);
                const int64_t row = u / pieces % size[1], slice = u / pieces / size[1] % size[0],
                              n = u / pieces / size[1] / size[0];
                call.pixels = piece.size;
                call.x = patch.origin(x + n * image, block, patches.data() + n * patch_size) +
                         group * p.in_channels + slice * phase.dims[0].stride * patch.step(0) +
                         row * phase.dims[1].stride * patch.step(1) + piece.begin * call.x_col;
                call.y = y + n * out_image + slice * y_step[0] + row * y_step[1] + piece.begin * y_step[2] +
                         group * p.out_channels + k;
                const Steps valid(phase, plan,
                                  plan.outer == 0 ? block.begin[0] + slice : block.begin[1] + row);
                call.accumulate = steps.begin > valid.begin;
                const int64_t from = std::max(steps.begin, valid.begin),
                              to = std::min(steps.begin + steps.size, valid.end);
                if (from >= to && (b > 0 || valid.begin < valid.end)) continue;
                if (to - from == steps.size) {
                  kernels.pixels(call);
                } else {
                  ConvPixels<T> part = call;
                  cut(part, steps.begin, from, to, kernels.lanes, inside);
                  kernels.pixels(part);
                }
              }
            }
          }
        }
      }
    }
  });
}

int64_t product(const int64_t (&v)[3]) {
  return v[0] * v[1] * v[2];
}

// One tap that every position reads at its own place: positions are then one long row.
ConvGeometry flattened(ConvGeometry p) {
  for (int d = 0; d < 3; ++d) {
    if (p.kernel[d] != 1 || p.stride[d] != 1 || p.padding[d] != 0) return p;
  }
  p.in[2] = p.out[2] = p.n * product(p.in);
  p.n = p.in[0] = p.in[1] = p.out[0] = p.out[1] = 1;
  return p;
}

template <class T>
PixelConv<T> common(const ConvGeometry& p) {
  PixelConv<T> c{};
  const int64_t cg = p.c / p.g;
  c.n = p.n;
  c.g = p.g;
  c.w_group = p.k / p.g * product(p.kernel) * cg;
  c.w_tap[0] = p.kernel[1] * p.kernel[2] * cg;
  c.w_tap[1] = p.kernel[2] * cg;
  c.w_tap[2] = cg;
  return c;
}

template <class T>
void forward(const ConvForwardParams& params) {
  const ConvGeometry p = flattened(params);
  PixelConv<T> c = common<T>(p);
  c.in_channels = p.c / p.g;
  c.out_channels = p.k / p.g;
  c.phases = forward_phases(p);
  for (int d = 0; d < 3; ++d) c.out[d] = p.out[d], c.out_step[d] = 1;
  c.x = static_cast<const T*>(params.x);
  c.bias = static_cast<const T*>(params.b);
  c.w = static_cast<const T*>(params.w);
  c.w_out = product(p.kernel) * c.in_channels;
  c.w_in = 1;
  c.y = static_cast<T*>(params.y);
  pixel_conv(c);
}

template <class T>
void backward_data(const ConvBackwardDataParams& params) {
  const ConvGeometry p = flattened(params);
  PixelConv<T> c = common<T>(p);
  c.in_channels = p.k / p.g;
  c.out_channels = p.c / p.g;
  c.phases = backward_data_phases(p);
  for (int d = 0; d < 3; ++d) c.out[d] = p.in[d], c.out_step[d] = p.stride[d];
  c.x = static_cast<const T*>(params.dy);
  c.bias = static_cast<const T*>(params.b);
  c.w = static_cast<const T*>(params.w);
  c.w_out = 1;
  c.w_in = product(p.kernel) * c.out_channels;
  c.y = static_cast<T*>(params.dx);
  pixel_conv(c);
}

}  // namespace

void conv_last_dense(const ConvForwardParams& p) {
  p.dtype == DType::kFloat64 ? forward<double>(p) : forward<float>(p);
}
void conv_last_dense(const ConvBackwardDataParams& p) {
  p.dtype == DType::kFloat64 ? backward_data<double>(p) : backward_data<float>(p);
}

}  // namespace fastnn::cpu
