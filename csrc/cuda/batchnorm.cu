// Batch norm, y = (x - mean) invstd w + b per channel of [N, C, L] or [N, L, C].
//
// Bound by memory: training reads x twice, backward dy and x twice. Three launches: blocks reduce one channel
// (or, channels last, 32 neighbouring ones) over one of at most kParts ranges of its N * L numbers; a thread
// per channel merges the ranges in order, so the bits are the same in every run, and makes the coefficients;
// packs of 16 bytes are mapped. Sums are of x minus the channel's first number, the pivot, up to the end:
// squares don't cancel, and a mean near zero keeps the digits that merging needs.
// Backward: dx = a (dy - b - (x - mean) d), a = w invstd, b = mean(dy), d = invstd^2 mean(dy (x - mean)).
#include "cuda/batchnorm.h"
#include "cuda/reduce.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kParts = 64;
constexpr int kRowWarps = kThreads / kWarp;
constexpr int64_t kPartLength = 2048;  // numbers of a channel that are worth a block of their own

__device__ __forceinline__ float inverse_root(float x) {
  return 1.0f / sqrtf(x);
}
__device__ __forceinline__ double inverse_root(double x) {
  return 1.0 / sqrt(x);
}

// Where a channel begins.
__device__ __forceinline__ int64_t first_of(int64_t channel, int64_t L, bool last) {
  return last ? channel : channel * L;
}

// What is summed over a channel: V of a thread's numbers, merged by Join. Forward: moments of x - pivot.
template <class T>
struct BatchMoments {
  using C = Compute<T>;
  using V = Moments<C>;
  using Join = Merge;
  const T* x;

  struct Thread {
    C pivot, count, sum, squares;
    __device__ __forceinline__ V result() const {
      if (count == C(0)) return {C(0), C(0), C(0)};
      const C shift = sum / count;
      // Squares that overflow are not those of infinity: the variance is infinite, and y zero.
      const bool overflow = isinf(squares) && isfinite(sum);
      return {count, shift, overflow ? squares : squares - sum * shift};
    }
  };
  __device__ __forceinline__ Thread start(int64_t first_of_channel, int64_t) const {
    return {load(x[first_of_channel]), C(0), C(0), C(0)};
  }
  __device__ __forceinline__ void add(Thread& t, int64_t at) const {
    const C d = load(x[at]) - t.pivot;
    t.count += C(1);
    t.sum += d;
    t.squares += d * d;
  }
};

// Backward: the sums of dy and dy (x - mean).
template <class T>
struct GradientSums {
  using C = Compute<T>;
  using V = Two<C>;
  using Join = SumTwo;
  const T *dy, *x;
  const C* mean;

  struct Thread {
    C mean;
    V sums;
    __device__ __forceinline__ V result() const { return sums; }
  };
  __device__ __forceinline__ Thread start(int64_t, int64_t channel) const {
    return {mean[channel], {C(0), C(0)}};
  }
  __device__ __forceinline__ void add(Thread& t, int64_t at) const {
    const C g = load(dy[at]);
    t.sums.a += g;
    t.sums.b += g * (load(x[at]) - t.mean);
  }
};

// [N, C, L]: block (channel, part). Number e of the channel is at (e / L * C + channel) * L + e % L; the
// thread keeps quotient and remainder as it steps.
template <class Reduction>
__global__ void __launch_bounds__(kThreads)
    reduce_planes(Reduction r, typename Reduction::V* parts, int64_t N, int64_t C, int64_t L) {
  const int64_t channel = blockIdx.x;
  const int64_t per_part = (N * L + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * per_part;
  const int64_t end = begin + per_part < N * L ? begin + per_part : N * L;
  const int64_t step_n = kThreads / L, step_l = kThreads % L;
  auto seen = r.start(channel * L, channel);
  int64_t e = begin + threadIdx.x, n = e / L, l = e % L;
#pragma unroll 4
  for (; e < end; e += kThreads) {
    r.add(seen, (n * C + channel) * L + l);
    n += step_n;
    l += step_l;
    if (l >= L) {
      l -= L;
      ++n;
    }
  }
  const auto all = group_reduce<kThreads>(seen.result(), typename Reduction::Join());
  if (threadIdx.x == 0) parts[blockIdx.y * C + channel] = all;
}

// [N, L, C]: block (32 channels, part), each warp a row at a time.
template <class Reduction>
__global__ void __launch_bounds__(kThreads)
    reduce_rows(Reduction r, typename Reduction::V* parts, int64_t rows, int64_t C) {
  using V = typename Reduction::V;
  FASTNN_SHARED(V, of_warp, kThreads);
  const int64_t channel = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  const int64_t per_part = (rows + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * per_part;
  const int64_t end = begin + per_part < rows ? begin + per_part : rows;
  if (channel < C) {
    auto seen = r.start(channel, channel);
#pragma unroll 4
    for (int64_t row = begin + threadIdx.y; row < end; row += kRowWarps) r.add(seen, row * C + channel);
    of_warp[threadIdx.y * kWarp + threadIdx.x] = seen.result();
  }
  __syncthreads();
  if (threadIdx.y != 0 || channel >= C) return;
  V all = of_warp[threadIdx.x];
  for (int warp = 1; warp < kRowWarps; ++warp) {
    all = typename Reduction::Join()(all, of_warp[warp * kWarp + threadIdx.x]);
  }
  parts[blockIdx.y * C + channel] = all;
}

template <class V, class Join>
__device__ __forceinline__ V merged(const V* parts, int count, int64_t C, int64_t channel, const Join& join) {
  V all = parts[channel];
  for (int part = 1; part < count; ++part) all = join(all, parts[part * C + channel]);
  return all;
}

// Per channel: what the statistics become, and scale = w invstd and offset for the map,
// y = (x - mean) scale + offset: the bias, and what the rounding of a mean far from zero has lost.
template <class T>
struct Statistics {
  using C = Compute<T>;
  const T* x;
  int64_t L;
  bool last;
  const C *weight, *bias;
  C *running_mean, *running_var, *save_mean, *save_invstd;  // the last two null when not training
  C *scale, *offset;
  C momentum, eps;
};
template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    finish_forward(const Moments<C>* parts, int count, int64_t channels, Statistics<T> s) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= channels) return;
  C invstd, lost = 0;
  if (parts == nullptr) {
    invstd = inverse_root(s.running_var[c] + s.eps);
  } else {
    Moments<C> m = merged(parts, count, channels, c, Merge());
    const C pivot = load(s.x[first_of(c, s.L, s.last)]), mean = pivot + m.mean;
    lost = isfinite(mean) ? (pivot - mean) + m.mean : C(0);
    m.mean = mean;
    invstd = inverse_root(m.m2 / m.count + s.eps);
    s.save_mean[c] = m.mean;
    s.save_invstd[c] = invstd;
    if (s.running_mean != nullptr) {
      s.running_mean[c] = (C(1) - s.momentum) * s.running_mean[c] + s.momentum * m.mean;
    }
    if (s.running_var != nullptr) {
      s.running_var[c] = (C(1) - s.momentum) * s.running_var[c] + s.momentum * (m.m2 / (m.count - C(1)));
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
__global__ void __launch_bounds__(kThreads)
    finish_backward(const Two<C>* parts, int count, int64_t channels, C numbers, const C* weight,
                    const C* invstds, const C* vars, C eps, C* dweight, C* dbias, Coefficients<C> to) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= channels) return;
  const bool training = invstds != nullptr;
  const C invstd = training ? invstds[c] : inverse_root(vars[c] + eps);
  const Two<C> sums = merged(parts, count, channels, c, SumTwo());
  if (dweight != nullptr) dweight[c] = sums.b * invstd;
  if (dbias != nullptr) dbias[c] = sums.a;
  to.a[c] = weight == nullptr ? invstd : invstd * weight[c];
  to.b[c] = training ? sums.a / numbers : C(0);
  to.d[c] = training ? sums.b / numbers * invstd * invstd : C(0);
}

template <class T>
struct Normalise {
  using C = Compute<T>;
  static constexpr int kInputs = 1;
  const T* in[1];
  const C *mean, *scale, *offset;
  __device__ __forceinline__ C operator()(const C (&v)[1], int64_t c) const {
    return (v[0] - mean[c]) * scale[c] + offset[c];
  }
};
template <class T>
struct Gradient {
  using C = Compute<T>;
  static constexpr int kInputs = 2;
  const T* in[2];  // dy, x
  const C* mean;
  Coefficients<C> k;
  bool training;
  __device__ __forceinline__ C operator()(const C (&v)[2], int64_t c) const {
    // In eval x plays no part: NaN times 0 would.
    return k.a[c] * (training ? v[0] - k.b[c] - (v[1] - mean[c]) * k.d[c] : v[0]);
  }
};

// out[i] = f(in[i]..., channel of i), N elements a thread: a pack, or one where a pointer is misaligned.
template <int N, class T, class F>
__global__ void __launch_bounds__(kThreads)
    map_kernel(F f, T* out, int64_t n, int64_t C, int64_t L, bool last) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (first >= n) return;
  const bool whole = N > 1 && first + N <= n;
  Pack<T> in[F::kInputs], y;
#pragma unroll
  for (int k = 0; k < F::kInputs; ++k) {
    if (whole) {
      in[k] = load_pack(f.in[k] + first);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) in[k].v[j] = first + j < n ? f.in[k][first + j] : T{};
    }
  }
  int64_t channel = last ? first % C : first / L % C, within = last ? 0 : first % L;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    Compute<T> v[F::kInputs];
#pragma unroll
    for (int k = 0; k < F::kInputs; ++k) v[k] = load(in[k].v[j]);
    y.v[j] = store<T>(f(v, channel));
    if (last || ++within == L) {
      within = 0;
      channel = channel + 1 == C ? 0 : channel + 1;
    }
  }
  if (whole) {
    store_pack(out + first, y);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (first + j < n) out[first + j] = y.v[j];
  }
}

template <class T, class F>
void map(const F& f, T* out, const BatchNormShape& s, bool packed, Stream stream) {
  const int64_t n = s.N * s.C * s.L;
  if (packed) {
    constexpr int N = Pack<T>::N;
    launch(map_kernel<N, T, F>, grid_for(ceil_div(n, N), kThreads), dim3(kThreads), 0, stream, f, out, n, s.C,
           s.L, s.channels_last);
  } else {
    launch(map_kernel<1, T, F>, grid_for(n, kThreads), dim3(kThreads), 0, stream, f, out, n, s.C, s.L,
           s.channels_last);
  }
}

int parts_of(const BatchNormShape& s) {
  const int64_t parts = ceil_div(s.N * s.L, kPartLength);
  return static_cast<int>(parts < kParts ? parts : kParts);
}

template <class Reduction>
void reduce(const Reduction& r, typename Reduction::V* parts, const BatchNormShape& s, Stream stream) {
  dim3 grid = s.channels_last ? grid_for(s.C, kWarp) : grid_for(s.C, 1);
  grid.y = static_cast<unsigned>(parts_of(s));
  if (s.channels_last) {
    launch(reduce_rows<Reduction>, grid, dim3(kWarp, kRowWarps), 0, stream, r, parts, s.N * s.L, s.C);
  } else {
    launch(reduce_planes<Reduction>, grid, dim3(kThreads), 0, stream, r, parts, s.N, s.C, s.L);
  }
}

template <class T>
void forward(const BatchNormParams& p, void* workspace, Stream stream) {
  using C = Compute<T>;
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  C *scale = static_cast<C*>(workspace), *offset = scale + p.shape.C;
  Moments<C>* parts = reinterpret_cast<Moments<C>*>(offset + p.shape.C);
  if (p.training) reduce(BatchMoments<T>{x}, parts, p.shape, stream);
  const Statistics<T> statistics{.x = x,
                                 .L = p.shape.L,
                                 .last = p.shape.channels_last,
                                 .weight = static_cast<const C*>(p.weight),
                                 .bias = static_cast<const C*>(p.bias),
                                 .running_mean = static_cast<C*>(p.running_mean),
                                 .running_var = static_cast<C*>(p.running_var),
                                 .save_mean = static_cast<C*>(p.save_mean),
                                 .save_invstd = static_cast<C*>(p.save_invstd),
                                 .scale = scale,
                                 .offset = offset,
                                 .momentum = static_cast<C>(p.momentum),
                                 .eps = static_cast<C>(p.eps)};
  launch(finish_forward<T, C>, grid_for(p.shape.C, kThreads), dim3(kThreads), 0, stream,
         static_cast<const Moments<C>*>(p.training ? parts : nullptr), parts_of(p.shape), p.shape.C,
         statistics);
  const C* mean = static_cast<const C*>(p.training ? p.save_mean : p.running_mean);
  map(Normalise<T>{{x}, mean, scale, offset}, y, p.shape, is_aligned(x) && is_aligned(y), stream);
}

template <class T>
void backward(const BatchNormBackwardParams& p, void* workspace, Stream stream) {
  using C = Compute<T>;
  const T *dy = static_cast<const T*>(p.dy), *x = static_cast<const T*>(p.x);
  const C* mean = static_cast<const C*>(p.mean);
  C* a = static_cast<C*>(workspace);
  const Coefficients<C> k{a, a + p.shape.C, a + 2 * p.shape.C};
  Two<C>* parts = reinterpret_cast<Two<C>*>(a + 3 * p.shape.C);
  reduce(GradientSums<T>{dy, x, mean}, parts, p.shape, stream);
  launch(finish_backward<C>, grid_for(p.shape.C, kThreads), dim3(kThreads), 0, stream,
         static_cast<const Two<C>*>(parts), parts_of(p.shape), p.shape.C,
         static_cast<C>(p.shape.N * p.shape.L), static_cast<const C*>(p.weight),
         static_cast<const C*>(p.training ? p.invstd : nullptr), static_cast<const C*>(p.var),
         static_cast<C>(p.eps), static_cast<C*>(p.dweight), static_cast<C*>(p.dbias), k);
  if (p.dx == nullptr) return;
  T* dx = static_cast<T*>(p.dx);
  map(Gradient<T>{{dy, x}, mean, k, p.training}, dx, p.shape,
      is_aligned(dy) && is_aligned(x) && is_aligned(dx), stream);
}

}  // namespace

int64_t batchnorm_workspace(const BatchNormShape& s) {
  return s.C * (3 + 3 * parts_of(s));  // coefficients, and for each part moments or two sums
}

void batchnorm_forward(const BatchNormParams& p, void* workspace, Stream stream) {
  if (p.shape.N * p.shape.C * p.shape.L == 0) return;
  visit(p.dtype, [&](auto element) { forward<decltype(element)>(p, workspace, stream); });
}

void batchnorm_backward(const BatchNormBackwardParams& p, void* workspace, Stream stream) {
  if (p.shape.N * p.shape.C * p.shape.L == 0) return;
  visit(p.dtype, [&](auto element) { backward<decltype(element)>(p, workspace, stream); });
}

}  // namespace fastnn::cuda
