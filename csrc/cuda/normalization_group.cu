// Group norm, y = (x - mean) rstd w + b with mean and rstd of each sample and group of channels; instance
// norm is one channel per group.
//
// Bound by memory: x is read twice, backward dy and x twice. channels.cuh reduces the channels of each sample
// (or, a group being one stretch of a contiguous tensor, whole groups); a warp per group merges what its
// channels found, in order, and makes coefficients per sample and channel; packs are mapped. With g = dy w, S
// and P the sums of g and g (x - mean) over the n numbers of a group: dx = rstd g - rstd S / n - (x - mean)
// rstd^3 P / n.
#include "cuda/channels.cuh"
#include "cuda/normalization.h"

namespace fastnn::cuda {
namespace {

// Coefficients, an array per cell [N, C] each.
template <class C>
struct GroupScales {
  C *mean, *scale, *offset;
};
template <class C>
struct GroupSlopes {
  C *mean, *a, *b, *d;  // dx = a dy - b - (x - mean) d
};

// Warp (sample, group): sums of `found` neighbours of parts, cells or the whole group, to its statistics
// and the coefficients of its channels.
template <class T, class C>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    finish_forward(const Two<double>* parts, int count, int64_t groups, int64_t found, double numbers,
                   int64_t G, int64_t width, const C* weight, const C* bias, C* means, C* rstds, C eps,
                   Pivots<T> pivots, GroupScales<C> to) {
  const int64_t group = int64_t{blockIdx.x} * kRowWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (group >= groups) return;
  Two<double> all = {0, 0};
  for (int64_t i = lane; i < found; i += kWarp) {
    all = SumTwo()(all, merged(parts, count, groups * found, group * found + i, SumTwo()));
  }
  const Statistics s(warp_reduce(all, SumTwo()), pivots(group), numbers);
  const C mean = static_cast<C>(s.mean),
          rstd = static_cast<C>(inverse_root(s.variance + static_cast<double>(eps)));
  if (lane == 0) {
    means[group] = mean;
    rstds[group] = rstd;
  }
  const int64_t first = group % G * width;
  for (int64_t i = lane; i < width; i += kWarp) {
    const int64_t cell = group * width + i;
    to.mean[cell] = mean;
    const C scale = weight == nullptr ? rstd : rstd * weight[first + i];
    to.scale[cell] = scale;
    to.offset[cell] = (bias == nullptr ? C(0) : bias[first + i]) - s.template lost<C>() * scale;
  }
}

// Instance norm: what the running statistics become, from the sums of each sample's channel.
template <class T, class C>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    move_running(const Two<double>* parts, int count, int64_t N, int64_t channels, double numbers, C momentum,
                 Pivots<T> pivots, C* running_mean, C* running_var) {
  const int64_t c = int64_t{blockIdx.x} * kChannelThreads + threadIdx.x;
  if (c >= channels) return;
  double mean = 0, var = 0;
  for (int64_t n = 0; n < N; ++n) {
    const int64_t cell = n * channels + c;
    const Statistics s(merged(parts, count, N * channels, cell, SumTwo()), pivots(cell), numbers);
    mean += s.mean;
    var += s.variance;
  }
  mean /= static_cast<double>(N);
  var *= numbers / (numbers - 1) / static_cast<double>(N);
  if (running_mean != nullptr) {
    running_mean[c] = (C(1) - momentum) * running_mean[c] + momentum * static_cast<C>(mean);
  }
  if (running_var != nullptr) {
    running_var[c] = (C(1) - momentum) * running_var[c] + momentum * static_cast<C>(var);
  }
}

// Warp (sample, group): the sums of its channels, left in parts[cell], and the coefficients of dx.
template <class C>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    finish_backward(Two<double>* parts, int count, int64_t groups, int64_t G, int64_t width, double numbers,
                    const C* weight, const C* means, const C* rstds, GroupSlopes<C> to) {
  const int64_t group = int64_t{blockIdx.x} * kRowWarps + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (group >= groups) return;
  const int64_t first = group % G * width;
  Two<double> all = {0, 0};
  for (int64_t i = lane; i < width; i += kWarp) {
    const int64_t cell = group * width + i;
    const Two<double> sums = merged(parts, count, groups * width, cell, SumTwo());
    parts[cell] = sums;
    const double w = weight == nullptr ? 1 : weight[first + i];
    all = SumTwo()(all, Two<double>{w * sums.a, w * sums.b});
  }
  all = warp_reduce(all, SumTwo());
  const C rstd = rstds[group];
  const double share = rstd / numbers;
  for (int64_t i = lane; i < width; i += kWarp) {
    const int64_t cell = group * width + i;
    to.mean[cell] = means[group];
    to.a[cell] = weight == nullptr ? rstd : rstd * weight[first + i];
    to.b[cell] = static_cast<C>(share * all.a);
    to.d[cell] = static_cast<C>(share * rstd * rstd * all.b);
  }
}

// Thread per channel: the sums of its samples.
template <class C>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    finish_parameters(const Two<double>* sums, int64_t N, int64_t channels, int64_t G, const C* rstds,
                      C* dweight, C* dbias) {
  const int64_t c = int64_t{blockIdx.x} * kChannelThreads + threadIdx.x;
  if (c >= channels) return;
  const int64_t group = c / (channels / G);
  Two<double> all = {0, 0};
#pragma unroll 4
  for (int64_t n = 0; n < N; ++n) {
    const Two<double> of_sample = sums[n * channels + c];
    all = SumTwo()(all, Two<double>{of_sample.a, of_sample.b * rstds[n * G + group]});
  }
  if (dweight != nullptr) dweight[c] = static_cast<C>(all.b);
  if (dbias != nullptr) dbias[c] = static_cast<C>(all.a);
}

template <class T>
struct GroupGradient {
  using C = Compute<T>;
  static constexpr int kInputs = 2;
  const T* in[2];  // dy, x
  GroupSlopes<C> k;
  __device__ __forceinline__ C operator()(const C (&v)[2], int64_t cell) const {
    return k.a[cell] * v[0] - k.b[cell] - (v[1] - k.mean[cell]) * k.d[cell];
  }
};

Cells cells_of(const GroupNormShape& s) {
  return Cells::of(s.N, s.C, s.L, s.channels_last || s.L == 1, /*per_sample=*/true);
}
int64_t numbers(const GroupNormShape& s) {
  return s.N * s.C * s.L;
}

template <class T>
void forward(const GroupNormParams& p, void* workspace, Stream stream) {
  using C = Compute<T>;
  const GroupNormShape& s = p.shape;
  const int64_t groups = s.N * s.G, width = s.C / s.G, cells = s.N * s.C;
  const double n = static_cast<double>(width * s.L);
  const T* x = static_cast<const T*>(p.x);
  const Cells of_map = cells_of(s);
  // A group of a contiguous tensor is one stretch of memory.
  const Cells of_sums = of_map.last ? of_map : Cells::of(s.N, s.G, width * s.L, false, true);
  const int64_t found = of_map.last ? width : 1;
  const int count = of_sums.parts();
  Two<double>* parts = static_cast<Two<double>*>(workspace);
  C* a = reinterpret_cast<C*>(parts + count * groups * found);
  const GroupScales<C> to{a, a + cells, a + 2 * cells};
  const Pivots<T> pivots(x, of_sums, found);
  reduce_cells(CellMoments<T>{x, pivots, found}, parts, count, of_sums, stream);
  const Two<double>* sums = parts;
  launch(finish_forward<T, C>, grid_for(groups, kRowWarps), dim3(kChannelThreads), 0, stream, sums, count,
         groups, found, n, s.G, width, static_cast<const C*>(p.weight), static_cast<const C*>(p.bias),
         static_cast<C*>(p.mean), static_cast<C*>(p.rstd), static_cast<C>(p.eps), pivots, to);
  if (p.running_mean != nullptr || p.running_var != nullptr) {
    launch(move_running<T, C>, grid_for(s.C, kChannelThreads), dim3(kChannelThreads), 0, stream, sums, count,
           s.N, s.C, n, static_cast<C>(p.momentum), pivots, static_cast<C*>(p.running_mean),
           static_cast<C*>(p.running_var));
  }
  map_cells(Normalise<T>{{x}, to.mean, to.scale, to.offset}, static_cast<T*>(p.y), numbers(s), of_map,
            stream);
}

template <class T>
void backward(const GroupNormBackwardParams& p, void* workspace, Stream stream) {
  using C = Compute<T>;
  const GroupNormShape& s = p.shape;
  const int64_t groups = s.N * s.G, width = s.C / s.G, cells = s.N * s.C;
  const T *dy = static_cast<const T*>(p.dy), *x = static_cast<const T*>(p.x);
  const C *mean = static_cast<const C*>(p.mean), *rstd = static_cast<const C*>(p.rstd);
  const Cells c = cells_of(s);
  const int count = c.parts();
  Two<double>* parts = static_cast<Two<double>*>(workspace);
  C* a = reinterpret_cast<C*>(parts + count * cells);
  const GroupSlopes<C> to{a, a + cells, a + 2 * cells, a + 3 * cells};
  reduce_cells(CellGradients<T>{dy, x, mean, width}, parts, count, c, stream);
  launch(finish_backward<C>, grid_for(groups, kRowWarps), dim3(kChannelThreads), 0, stream, parts, count,
         groups, s.G, width, static_cast<double>(width * s.L), static_cast<const C*>(p.weight), mean, rstd,
         to);
  if (p.dweight != nullptr || p.dbias != nullptr) {
    launch(finish_parameters<C>, grid_for(s.C, kChannelThreads), dim3(kChannelThreads), 0, stream,
           static_cast<const Two<double>*>(parts), s.N, s.C, s.G, rstd, static_cast<C*>(p.dweight),
           static_cast<C*>(p.dbias));
  }
  if (p.dx == nullptr) return;
  map_cells(GroupGradient<T>{{dy, x}, to}, static_cast<T*>(p.dx), numbers(s), c, stream);
}

}  // namespace

int64_t group_norm_workspace(const GroupNormShape& s) {
  // Coefficients, and for each part two doubles. Whole groups have at most kParts parts.
  return s.N * s.C * (4 + 4 * cells_of(s).parts()) + 4 * s.N * s.G * kParts;
}

void group_norm_forward(const GroupNormParams& p, void* workspace, Stream stream) {
  if (numbers(p.shape) == 0) return;
  visit(p.dtype, [&](auto element) { forward<decltype(element)>(p, workspace, stream); });
}

void group_norm_backward(const GroupNormBackwardParams& p, void* workspace, Stream stream) {
  if (numbers(p.shape) == 0) return;
  visit(p.dtype, [&](auto element) { backward<decltype(element)>(p, workspace, stream); });
}

}  // namespace fastnn::cuda
