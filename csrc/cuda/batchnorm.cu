// Batch norm, y = (x - mean) invstd w + b per channel of [N, C, L] or [N, L, C].
//
// Bound by memory: training reads x twice, backward dy and x twice. Three launches: channels.cuh reduces
// ranges of each channel; a thread per channel merges the ranges in order and makes the coefficients; packs
// are mapped. Backward: dx = a (dy - b - (x - mean) d), a = w invstd, b = mean(dy), d = invstd^2 mean(dy (x -
// mean)).
#include "cuda/batchnorm.h"
#include "cuda/channels.cuh"

namespace fastnn::cuda {
namespace {

// Per channel: what the statistics become, and scale = w invstd and offset for the map.
template <class C>
struct ChannelStatistics {
  const C *weight, *bias;
  C *running_mean, *running_var, *save_mean, *save_invstd;  // the last two null when not training
  C *scale, *offset;
  C momentum, eps;
};
template <class T, class C>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    finish_forward(const Two<double>* parts, int count, int64_t channels, double numbers, Pivots<T> pivots,
                   ChannelStatistics<C> s) {
  const int64_t c = int64_t{blockIdx.x} * kChannelThreads + threadIdx.x;
  if (c >= channels) return;
  C invstd, lost = 0;
  if (parts == nullptr) {
    invstd = inverse_root(s.running_var[c] + s.eps);
  } else {
    const Statistics found(merged(parts, count, channels, c, SumTwo()), pivots(c), numbers);
    const C mean = static_cast<C>(found.mean);
    lost = found.template lost<C>();
    invstd = static_cast<C>(inverse_root(found.variance + static_cast<double>(s.eps)));
    s.save_mean[c] = mean;
    s.save_invstd[c] = invstd;
    if (s.running_mean != nullptr) {
      s.running_mean[c] = (C(1) - s.momentum) * s.running_mean[c] + s.momentum * mean;
    }
    if (s.running_var != nullptr) {
      const C unbiased = static_cast<C>(found.variance * (numbers / (numbers - 1)));
      s.running_var[c] = (C(1) - s.momentum) * s.running_var[c] + s.momentum * unbiased;
    }
  }
  const C scale = s.weight == nullptr ? invstd : invstd * s.weight[c];
  s.scale[c] = scale;
  s.offset[c] = (s.bias == nullptr ? C(0) : s.bias[c]) - lost * scale;
}

// Per channel: parameters' gradients and the coefficients of dx.
template <class C>
struct Coefficients {
  C *a, *b, *d;
};
template <class C>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    finish_backward(const Two<double>* parts, int count, int64_t channels, double numbers, const C* weight,
                    const C* invstds, const C* vars, C eps, C* dweight, C* dbias, Coefficients<C> to) {
  const int64_t c = int64_t{blockIdx.x} * kChannelThreads + threadIdx.x;
  if (c >= channels) return;
  const bool training = invstds != nullptr;
  const C invstd = training ? invstds[c] : inverse_root(vars[c] + eps);
  const Two<double> sums = merged(parts, count, channels, c, SumTwo());
  if (dweight != nullptr) dweight[c] = static_cast<C>(sums.b * invstd);
  if (dbias != nullptr) dbias[c] = static_cast<C>(sums.a);
  to.a[c] = weight == nullptr ? invstd : invstd * weight[c];
  to.b[c] = static_cast<C>(sums.a / numbers);
  to.d[c] = static_cast<C>(sums.b / numbers * invstd * invstd);
}

template <class T>
struct Gradient {
  using C = Compute<T>;
  static constexpr int kInputs = 2;
  const T* in[2];  // dy, x
  const C* mean;
  Coefficients<C> k;
  __device__ __forceinline__ C operator()(const C (&v)[2], int64_t c) const {
    return k.a[c] * (v[0] - k.b[c] - (v[1] - mean[c]) * k.d[c]);
  }
};
// Running statistics are constants: dx = a dy, also where x is infinite.
template <class T>
struct GradientInEval {
  using C = Compute<T>;
  static constexpr int kInputs = 1;
  const T* in[1];  // dy
  const C* a;
  __device__ __forceinline__ C operator()(const C (&v)[1], int64_t c) const { return a[c] * v[0]; }
};

Cells cells_of(const BatchNormShape& s) {
  return Cells::of(s.N, s.C, s.L, s.channels_last, /*per_sample=*/false);
}
int64_t numbers(const BatchNormShape& s) {
  return s.N * s.C * s.L;
}

template <class T>
void forward(const BatchNormParams& p, void* workspace, Stream stream) {
  using C = Compute<T>;
  const T* x = static_cast<const T*>(p.x);
  const Cells cells = cells_of(p.shape);
  const int count = cells.parts();
  Two<double>* parts = static_cast<Two<double>*>(workspace);
  C *scale = reinterpret_cast<C*>(parts + count * p.shape.C), *offset = scale + p.shape.C;
  const Pivots<T> pivots(x, cells, 1);
  if (p.training) reduce_cells(CellMoments<T>{x, pivots, 1}, parts, count, cells, stream);
  const ChannelStatistics<C> statistics{.weight = static_cast<const C*>(p.weight),
                                        .bias = static_cast<const C*>(p.bias),
                                        .running_mean = static_cast<C*>(p.running_mean),
                                        .running_var = static_cast<C*>(p.running_var),
                                        .save_mean = static_cast<C*>(p.save_mean),
                                        .save_invstd = static_cast<C*>(p.save_invstd),
                                        .scale = scale,
                                        .offset = offset,
                                        .momentum = static_cast<C>(p.momentum),
                                        .eps = static_cast<C>(p.eps)};
  launch(finish_forward<T, C>, grid_for(p.shape.C, kChannelThreads), dim3(kChannelThreads), 0, stream,
         static_cast<const Two<double>*>(p.training ? parts : nullptr), count, p.shape.C,
         static_cast<double>(cells.numbers()), pivots, statistics);
  const C* mean = static_cast<const C*>(p.training ? p.save_mean : p.running_mean);
  map_cells(Normalise<T>{{x}, mean, scale, offset}, static_cast<T*>(p.y), numbers(p.shape), cells, stream);
}

template <class T>
void backward(const BatchNormBackwardParams& p, void* workspace, Stream stream) {
  using C = Compute<T>;
  const T *dy = static_cast<const T*>(p.dy), *x = static_cast<const T*>(p.x);
  const C* mean = static_cast<const C*>(p.mean);
  const Cells cells = cells_of(p.shape);
  const int count = cells.parts();
  Two<double>* parts = static_cast<Two<double>*>(workspace);
  C* a = reinterpret_cast<C*>(parts + count * p.shape.C);
  const Coefficients<C> k{a, a + p.shape.C, a + 2 * p.shape.C};
  reduce_cells(CellGradients<T>{dy, x, mean, 1}, parts, count, cells, stream);
  launch(finish_backward<C>, grid_for(p.shape.C, kChannelThreads), dim3(kChannelThreads), 0, stream,
         static_cast<const Two<double>*>(parts), count, p.shape.C, static_cast<double>(cells.numbers()),
         static_cast<const C*>(p.weight), static_cast<const C*>(p.training ? p.invstd : nullptr),
         static_cast<const C*>(p.var), static_cast<C>(p.eps), static_cast<C*>(p.dweight),
         static_cast<C*>(p.dbias), k);
  if (p.dx == nullptr) return;
  T* dx = static_cast<T*>(p.dx);
  if (p.training) {
    map_cells(Gradient<T>{{dy, x}, mean, k}, dx, numbers(p.shape), cells, stream);
  } else {
    map_cells(GradientInEval<T>{{dy}, k.a}, dx, numbers(p.shape), cells, stream);
  }
}

}  // namespace

int64_t batchnorm_workspace(const BatchNormShape& s) {
  return s.C * (3 + 4 * cells_of(s).parts());  // coefficients, and for each part two doubles
}

void batchnorm_forward(const BatchNormParams& p, void* workspace, Stream stream) {
  if (numbers(p.shape) == 0) return;
  visit(p.dtype, [&](auto element) { forward<decltype(element)>(p, workspace, stream); });
}

void batchnorm_backward(const BatchNormBackwardParams& p, void* workspace, Stream stream) {
  if (numbers(p.shape) == 0) return;
  visit(p.dtype, [&](auto element) { backward<decltype(element)>(p, workspace, stream); });
}

}  // namespace fastnn::cuda
