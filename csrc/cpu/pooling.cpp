// Choice of algorithm, blocks and threads for pooling. What an algorithm computes stands in
// csrc/cpu/kernels/pooling_rows.h, pooling_max.cpp and pooling_avg.cpp.
#include "cpu/kernels/pooling.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/pooling/algorithms.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

// A line of this many columns, de-interleaved, stays in the L1 cache next to the rows it is made of.
constexpr int64_t kColumns = 1024;
// Scratch beyond this is a sign of windows so large that the plain loop does as well.
constexpr int64_t kMostScratch = int64_t{32} << 20;

// Cuts planes x depth x rows x cols. Rows are cut only where the planes alone would leave threads idle.
PoolBlocks cut(int64_t planes, int64_t depth, int64_t rows, int64_t cols, bool cut_columns) {
  PoolBlocks b;
  b.planes = planes;
  b.depth = depth;
  b.cols = cut_columns ? std::min(cols, kColumns) : cols;
  b.col_blocks = ceil_div(cols, b.cols);
  const int64_t wanted = 4 * thread_limit(), have = planes * depth * b.col_blocks;
  b.row_blocks = std::clamp<int64_t>(ceil_div(wanted, have), 1, ceil_div(rows, 4));
  b.rows = ceil_div(rows, b.row_blocks);
  b.row_blocks = ceil_div(rows, b.rows);
  return b;
}

PoolBlocks output_blocks(const PoolShape& s) {
  if (s.channels_last) return cut(s.n, s.out[0], s.out[1], s.out[2], false);
  return cut(s.n * s.c, s.out[0], s.out[1], s.out[2], true);
}
PoolBlocks line_blocks(const PoolShape& s) {
  return cut(s.n * s.c, s.out[0], s.out[1], s.out[2], false);
}
PoolBlocks input_blocks(const PoolShape& s) {
  if (s.channels_last) return cut(s.n, s.in[0], s.in[1], s.in[2], false);
  if (s.adaptive) return cut(s.n * s.c, s.in[0], s.in[1], s.in[2], false);
  return cut(s.n * s.c, s.in[0], s.in[1], ceil_div(s.in[2], s.stride[2]), true);
}

// Bytes of scratch per thread, an upper bound over the kernels of a family.
template <class C>
int64_t rows_bytes(const PoolShape& s, bool every_row) {
  PoolScratch pieces(nullptr);
  ForwardLines<C>(s, output_blocks(s), every_row, pieces);
  return pieces.bytes();
}
template <class C>
int64_t backward_rows_bytes(const PoolShape& s) {
  PoolScratch pieces(nullptr);
  const BackwardLines<C> lines(s, input_blocks(s), s.adaptive, pieces);
  const int64_t taps = lines.slots * s.kernel[2] * 32, rest = 2 * lines.slots * 8 + (s.stride[2] + 1) * 8;
  return pieces.bytes() + taps + rest + 5 * 64;
}
int64_t rows_bytes(DType dtype, const PoolShape& s, bool every_row) {
  return dtype == DType::kFloat64 ? rows_bytes<double>(s, every_row) : rows_bytes<float>(s, every_row);
}
int64_t backward_rows_bytes(DType dtype, const PoolShape& s) {
  return dtype == DType::kFloat64 ? backward_rows_bytes<double>(s) : backward_rows_bytes<float>(s);
}
int64_t lines_bytes(const PoolShape& s) {
  return (s.in[2] + kSlack) * 12 + s.kernel[0] * s.kernel[1] * 12 + s.out[2] * 24 + 5 * 64;
}
int64_t pixel_bytes(const PoolShape& s) {
  return s.taps() * 12 + s.out[2] * 8 + 3 * 64;
}
int64_t covering_bytes(const PoolShape& s) {
  const int64_t rows = pool_overlap(s, 0) * pool_overlap(s, 1), columns = pool_overlap(s, 2);
  return (rows * columns + rows + s.in[2] * columns) * 24 + (s.in[2] + s.out[2]) * 8 + 5 * 64;
}

// True unless some window reads no input at all, as a dilated one can: the row kernels fold at least one row.
bool every_window_reads(const PoolShape& s) {
  for (int dim = 0; dim < 3; ++dim) {
    if (s.dilation[dim] == 1 && s.padding[dim] < s.kernel[dim]) continue;
    for (int64_t o = 0; o < s.out[dim]; ++o) {
      const PoolWindow w = pool_window(s, dim, o);
      if (w.lo >= w.hi) return false;
    }
  }
  return true;
}

template <class Params, class Kernel>
void run_units(const Params& p, const PoolBlocks& b, int64_t scratch_bytes, const Kernel& kernel) {
  const int64_t work =
      std::max<int64_t>(1, (p.shape.inputs() + p.shape.outputs()) / std::max<int64_t>(1, b.units()));
  parallel_for(b.units(), ceil_div(kGrain, work), [&](int64_t begin, int64_t end) {
    Scratch<char> scratch(scratch_bytes);
    kernel(p, b, begin, end, scratch.data());
  });
}
template <class Params, class Kernel>
void run_planes(const Params& p, const Kernel& kernel) {
  const int64_t planes = p.shape.n * p.shape.c;
  const int64_t work =
      std::max<int64_t>(1, (p.shape.inputs() + p.shape.outputs()) / std::max<int64_t>(1, planes));
  parallel_for(planes, ceil_div(kGrain, work), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

// --- conditions; P is any of the four Params ---------------------------------------------------------

template <class P>
bool always(const P&) {
  return true;
}
template <class P>
bool channels_last(const P& p) {
  return p.shape.channels_last && every_window_reads(p.shape);
}
// Folding the rows of a window into one line and that line window by window: the only way for windows of
// varying size, the better one where a vector of outputs would be mostly empty or the window is tall.
bool max_lines(const MaxPoolParams& p) {
  const PoolShape& s = p.shape;
  if (s.channels_last || !every_window_reads(s)) return false;
  return s.adaptive || std::min<int64_t>(s.out[2], 16) < (p.codes ? s.kernel[1] : 3);
}
bool avg_lines(const AvgPoolParams& p) {
  return !p.shape.channels_last && every_window_reads(p.shape) && (p.shape.adaptive || p.shape.out[2] < 3);
}
template <class P>
bool fixed_rows(const P& p) {
  return !p.shape.channels_last && !p.shape.adaptive && every_window_reads(p.shape);
}
template <class P>
bool channels_last_backward(const P& p) {
  return channels_last(p) && covering_bytes(p.shape) <= kMostScratch;
}
// Windows side by side, none cut short: what pooling_disjoint.cpp takes.
template <class P>
bool disjoint(const P& p) {
  const PoolShape& s = p.shape;
  if (s.channels_last || s.adaptive || s.stride[2] > 2 || !pool_codes_are_bytes(s)) return false;
  for (int dim = 0; dim < 3; ++dim) {
    if (s.padding[dim] != 0 || s.dilation[dim] != 1 || s.kernel[dim] > s.stride[dim]) return false;
    if ((s.out[dim] - 1) * s.stride[dim] + s.kernel[dim] > s.in[dim]) return false;
  }
  return true;
}
template <class P>
bool pairs(const P& p) {
  return p.shape.kernel[2] == 2 && disjoint(p);
}
bool max_rows(const MaxPoolParams& p) {
  return fixed_rows(p) && rows_bytes(p.dtype, p.shape, p.codes != nullptr) <= kMostScratch;
}
bool avg_rows(const AvgPoolParams& p) {
  return fixed_rows(p) && rows_bytes(p.dtype, p.shape, false) <= kMostScratch;
}
template <class P>
bool backward_rows(const P& p) {
  return !p.shape.channels_last && backward_rows_bytes(p.dtype, p.shape) <= kMostScratch;
}
bool max_backward_rows(const MaxPoolBackwardParams& p) {
  return !p.shape.adaptive && backward_rows(p);
}
int64_t scatter_bytes(const MaxPoolBackwardParams& p) {
  const PoolShape& s = p.shape;
  const bool narrow = p.dtype == DType::kBFloat16 || p.dtype == DType::kFloat16;
  return s.taps() * 4 + s.out[2] * 8 + (narrow ? (s.in[0] * s.in[1] * s.in[2] + kSlack) * 4 : 0) + 3 * 64;
}
// An output scattered costs about as much as asking 9 taps in registers (3 x 3 windows side by side: even; 7
// x 7 with stride 1: 0.34 against 1.26 ms for 8x32x40x40), but only whole planes can be handed to threads.
// Both add in the order of the outputs.
bool max_scatter(const MaxPoolBackwardParams& p) {
  const PoolShape& s = p.shape;
  const bool many_taps = s.taps() > 9 || s.stride[1] * s.stride[2] > 1;
  return !s.channels_last && (s.adaptive || s.stride[2] > 2 || (many_taps && s.n * s.c >= 8)) &&
         every_window_reads(s) && s.in[0] * s.in[1] * s.in[2] <= INT32_MAX &&
         scatter_bytes(p) <= kMostScratch;
}
template <class P>
bool whole_plane(const P& p) {
  const PoolShape& s = p.shape;
  if (s.channels_last) return false;
  for (int dim = 0; dim < 3; ++dim)
    if (s.out[dim] != 1 || s.padding[dim] != 0 || s.kernel[dim] < s.in[dim]) return false;
  return true;
}

// --- runs ----------------------------------------------------------------------------------------------

void max_channels_last(const MaxPoolParams& p) {
  run_units(p, output_blocks(p.shape), pixel_bytes(p.shape), max_pool_kernels().forward_channels_last);
}
void max_fold_lines(const MaxPoolParams& p) {
  run_units(p, line_blocks(p.shape), lines_bytes(p.shape), max_pool_kernels().forward_lines);
}
void max_fixed(const MaxPoolParams& p) {
  run_units(p, output_blocks(p.shape), rows_bytes(p.dtype, p.shape, p.codes != nullptr),
            max_pool_kernels().forward_rows);
}
void max_reference(const MaxPoolParams& p) {
  run_planes(p, pool_reference_kernels().max_forward);
}

void max_backward_channels_last(const MaxPoolBackwardParams& p) {
  run_units(p, input_blocks(p.shape), covering_bytes(p.shape), max_pool_kernels().backward_channels_last);
}
void max_backward_fixed(const MaxPoolBackwardParams& p) {
  run_units(p, input_blocks(p.shape), backward_rows_bytes(p.dtype, p.shape),
            max_pool_kernels().backward_rows);
}
void max_backward_scatter(const MaxPoolBackwardParams& p) {
  run_planes(p, [bytes = scatter_bytes(p)](const MaxPoolBackwardParams& params, int64_t begin, int64_t end) {
    Scratch<char> scratch(bytes);
    max_pool_kernels().backward_scatter(params, begin, end, scratch.data());
  });
}
void max_backward_reference(const MaxPoolBackwardParams& p) {
  run_planes(p, pool_reference_kernels().max_backward);
}

void avg_channels_last(const AvgPoolParams& p) {
  run_units(p, output_blocks(p.shape), pixel_bytes(p.shape), avg_pool_kernels().forward_channels_last);
}
void avg_plane(const AvgPoolParams& p) {
  run_planes(p, avg_pool_kernels().forward_plane);
}
void avg_fold_lines(const AvgPoolParams& p) {
  run_units(p, line_blocks(p.shape), lines_bytes(p.shape), avg_pool_kernels().forward_lines);
}
void avg_fixed(const AvgPoolParams& p) {
  run_units(p, output_blocks(p.shape), rows_bytes(p.dtype, p.shape, false), avg_pool_kernels().forward_rows);
}
void avg_reference(const AvgPoolParams& p) {
  run_planes(p, pool_reference_kernels().avg_forward);
}

void avg_backward_channels_last(const AvgPoolBackwardParams& p) {
  run_units(p, input_blocks(p.shape), covering_bytes(p.shape), avg_pool_kernels().backward_channels_last);
}
void avg_backward_plane(const AvgPoolBackwardParams& p) {
  run_planes(p, avg_pool_kernels().backward_plane);
}
void avg_backward_rows(const AvgPoolBackwardParams& p) {
  run_units(p, input_blocks(p.shape), backward_rows_bytes(p.dtype, p.shape),
            avg_pool_kernels().backward_rows);
}
void avg_backward_reference(const AvgPoolBackwardParams& p) {
  run_planes(p, pool_reference_kernels().avg_backward);
}

void max_pairs(const MaxPoolParams& p) {
  run_units(p, output_blocks(p.shape), 0, disjoint_pool_kernels().max_forward);
}
void max_backward_disjoint(const MaxPoolBackwardParams& p) {
  run_units(p, input_blocks(p.shape), 0, disjoint_pool_kernels().max_backward);
}
void avg_pairs(const AvgPoolParams& p) {
  run_units(p, output_blocks(p.shape), 0, disjoint_pool_kernels().avg_forward);
}
void avg_backward_disjoint(const AvgPoolBackwardParams& p) {
  run_units(p, input_blocks(p.shape), 0, disjoint_pool_kernels().avg_backward);
}

constexpr PoolAlgorithm<MaxPoolParams> kMaxForward[] = {
    {"channels_last", channels_last, max_channels_last},
    {"pairs", pairs, max_pairs},
    {"lines", max_lines, max_fold_lines},
    {"rows", max_rows, max_fixed},
    {"reference", always, max_reference},
};
constexpr PoolAlgorithm<MaxPoolBackwardParams> kMaxBackward[] = {
    {"channels_last", channels_last_backward, max_backward_channels_last},
    {"disjoint", disjoint, max_backward_disjoint},
    {"scatter", max_scatter, max_backward_scatter},
    {"rows", max_backward_rows, max_backward_fixed},
    {"reference", always, max_backward_reference},
};
constexpr PoolAlgorithm<AvgPoolParams> kAvgForward[] = {
    {"channels_last", channels_last, avg_channels_last},
    {"plane", whole_plane, avg_plane},
    {"pairs", pairs, avg_pairs},
    {"lines", avg_lines, avg_fold_lines},
    {"rows", avg_rows, avg_fixed},
    {"reference", always, avg_reference},
};
constexpr PoolAlgorithm<AvgPoolBackwardParams> kAvgBackward[] = {
    {"channels_last", channels_last_backward, avg_backward_channels_last},
    {"plane", whole_plane, avg_backward_plane},
    {"disjoint", disjoint, avg_backward_disjoint},
    {"rows", backward_rows, avg_backward_rows},
    {"reference", always, avg_backward_reference},
};

// Adaptive windows that are all alike are fixed ones, and those are faster.
template <class Params>
Params simplest(Params p) {
  PoolShape& s = p.shape;
  if (!s.adaptive) return p;
  for (int dim = 0; dim < 3; ++dim)
    if (s.in[dim] % s.out[dim] != 0) return p;
  s.adaptive = false;
  for (int dim = 0; dim < 3; ++dim) s.stride[dim] = s.kernel[dim] = s.in[dim] / s.out[dim];
  return p;
}

// Planes whose rows are used up exactly by windows side by side are one tall plane: small pictures then cost
// no more per row than large ones.
template <class Params>
Params with_planes_joined(Params p) {
  PoolShape& s = p.shape;
  if (!disjoint(p) || s.in[0] != 1 || s.in[1] != s.out[1] * s.stride[1]) return p;
  s.in[1] *= s.n * s.c;
  s.out[1] *= s.n * s.c;
  s.n = s.c = 1;
  return p;
}

template <class Params>
const char* run(const Params& given) {
  if (given.shape.inputs() == 0 || given.shape.outputs() == 0) return "nothing to do";
  const Params p = with_planes_joined(simplest(given));
  const auto& algorithm = choose_pool_algorithm(p);
  algorithm.run(p);
  return algorithm.name;
}

}  // namespace

template <>
std::span<const PoolAlgorithm<MaxPoolParams>> pool_algorithms<MaxPoolParams>() {
  return kMaxForward;
}
template <>
std::span<const PoolAlgorithm<MaxPoolBackwardParams>> pool_algorithms<MaxPoolBackwardParams>() {
  return kMaxBackward;
}
template <>
std::span<const PoolAlgorithm<AvgPoolParams>> pool_algorithms<AvgPoolParams>() {
  return kAvgForward;
}
template <>
std::span<const PoolAlgorithm<AvgPoolBackwardParams>> pool_algorithms<AvgPoolBackwardParams>() {
  return kAvgBackward;
}

const char* max_pool_forward(const MaxPoolParams& p) {
  return run(p);
}
const char* max_pool_backward(const MaxPoolBackwardParams& p) {
  return run(p);
}
const char* avg_pool_forward(const AvgPoolParams& p) {
  return run(p);
}
const char* avg_pool_backward(const AvgPoolBackwardParams& p) {
  return run(p);
}

void max_pool_indices(const MaxPoolIndicesParams& p) {
  const PoolShape& s = p.shape;
  const int64_t channels = s.channels_last ? s.c : 1, planes = s.n * s.c / std::max<int64_t>(1, channels);
  const int64_t rows = planes * s.out[0] * s.out[1], row_size = s.out[2] * channels;
  parallel_for(rows, ceil_div(kGrain, std::max<int64_t>(1, row_size)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t d = pool_window(s, 0, row / s.out[1] % s.out[0]).begin,
                    h = pool_window(s, 1, row % s.out[1]).begin;
      for (int64_t ow = 0; ow < s.out[2]; ++ow) {
        const int64_t w = pool_window(s, 2, ow).begin;
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t at = row * row_size + ow * channels + c;
          const int64_t code = pool_codes_are_bytes(s) ? static_cast<const uint8_t*>(p.codes)[at]
                                                       : static_cast<const int32_t*>(p.codes)[at];
          const int64_t kw = code % s.kernel[2], kh = code / s.kernel[2] % s.kernel[1],
                        kd = code / s.kernel[2] / s.kernel[1];
          p.indices[at] = ((d + kd * s.dilation[0]) * s.in[1] + h + kh * s.dilation[1]) * s.in[2] + w +
                          kw * s.dilation[2];
        }
      }
    }
  });
}

}  // namespace fastnn::cpu
