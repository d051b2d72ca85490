// PReLU: y = x > 0 ? x : w x, dx = x > 0 ? dy : w dy, dw = sum of x dy over x <= 0, per channel.
// GLU: y = u s, s = sigmoid(v); du = dy s, dv = dy u s (1 - s), where x = (u, v).
//
// Bound by memory. PReLU's backward reads dy and x once: what sums dw (channels.cuh) writes dx as it goes. A
// single weight is one cell, so up to kMostParts blocks share it and a warp merges them in order.
#include "cuda/activation.h"
#include "cuda/channels.cuh"
#include "fastnn/scalar_math.h"

namespace fastnn::cuda {
namespace {

constexpr int64_t kMostParts = 1024;

template <class T>
struct Prelu {
  using C = Compute<T>;
  static constexpr int kInputs = 1;
  const T* in[1];
  const T* w;
  __device__ __forceinline__ C operator()(const C (&v)[1], int64_t channel) const {
    return v[0] > C(0) ? v[0] : load(w[channel]) * v[0];
  }
};

// A reduction of channels.cuh that also writes dx.
template <class T>
struct PreluGradients {
  using C = Compute<T>;
  using V = C;
  using Join = Sum;
  const T *dy, *x, *w;
  T* dx;

  struct Thread {
    C w, sum;
    __device__ __forceinline__ V result() const { return sum; }
  };
  __device__ __forceinline__ Thread start(int64_t channel) const { return {load(w[channel]), C(0)}; }
  __device__ __forceinline__ void add(Thread& t, int64_t at) const {
    const C v = load(x[at]), g = load(dy[at]);
    const bool positive = v > C(0);
    t.sum += positive ? C(0) : v * g;
    dx[at] = store<T>(positive ? g : t.w * g);
  }
};

// Warp per channel.
template <class T>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    finish_weights(const Compute<T>* parts, int count, int64_t channels, T* dw) {
  using C = Compute<T>;
  const int64_t channel = int64_t{blockIdx.x} * kRowWarps + threadIdx.x / kWarp;
  if (channel >= channels) return;
  C sum = 0;
#pragma unroll 4
  for (int part = threadIdx.x % kWarp; part < count; part += kWarp) sum += parts[part * channels + channel];
  sum = warp_reduce(sum, Sum());
  if (threadIdx.x % kWarp == 0) dw[channel] = store<T>(sum);
}

// x + begin: N numbers of the first half of a row; its second half is `half` further.
template <int N, class T>
__device__ __forceinline__ void read_numbers(const T* p, Compute<T> (&out)[N]) {
  if constexpr (N == 1) {
    out[0] = load(*p);
  } else {
    const Pack<T> pack = load_pack(p);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = load(pack.v[j]);
  }
}
template <int N, class T>
__device__ __forceinline__ void write_numbers(T* p, const Compute<T> (&in)[N]) {
  if constexpr (N == 1) {
    *p = store<T>(in[0]);
  } else {
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = store<T>(in[j]);
    store_pack(p, pack);
  }
}

template <int N, class T>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    glu_kernel(const T* x, T* y, int64_t n, int64_t half, Divisor<int64_t> by_half) {
  using C = Compute<T>;
  const int64_t first = (int64_t{blockIdx.x} * kChannelThreads + threadIdx.x) * N;
  if (first >= n) return;
  const int64_t at = first + by_half.quotient(first) * half;
  C u[N], v[N];
  read_numbers<N>(x + at, u);
  read_numbers<N>(x + at + half, v);
#pragma unroll
  for (int j = 0; j < N; ++j) u[j] *= sigmoid(v[j]);
  write_numbers<N>(y + first, u);
}

template <int N, class T>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    glu_gradient_kernel(const T* dy, const T* x, T* dx, int64_t n, int64_t half, Divisor<int64_t> by_half) {
  using C = Compute<T>;
  const int64_t first = (int64_t{blockIdx.x} * kChannelThreads + threadIdx.x) * N;
  if (first >= n) return;
  const int64_t at = first + by_half.quotient(first) * half;
  C g[N], u[N], v[N];
  read_numbers<N>(dy + first, g);
  read_numbers<N>(x + at, u);
  read_numbers<N>(x + at + half, v);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const C s = sigmoid(v[j]);
    g[j] *= s;
    v[j] = g[j] * (C(1) - s) * u[j];  // u last: it may be huge where 1 - s is 0
  }
  write_numbers<N>(dx + at, g);
  write_numbers<N>(dx + at + half, v);
}

// Calls f(Int<N>) with the numbers of one thread: every half row begins on a 16-byte border, or single ones.
template <class T, class F, class... Pointers>
void visit_halves(int64_t half, const F& f, const Pointers*... p) {
  half % Pack<T>::N == 0 && (is_aligned(p) && ...) ? f(Int<Pack<T>::N>{}) : f(Int<1>{});
}

template <class Params>
Cells cells_of(const Params& p) {
  return Cells::of(p.outer, p.channels, p.inner, /*last=*/p.inner == 1 && p.channels > 1,
                   /*per_sample=*/false);
}

}  // namespace

void prelu_forward(const PreluParams& p, Stream stream) {
  const int64_t n = p.outer * p.channels * p.inner;
  if (n == 0) return;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const Prelu<T> f{{static_cast<const T*>(p.x)}, static_cast<const T*>(p.w)};
    map_cells(f, static_cast<T*>(p.y), n, cells_of(p), stream);
  });
}

int64_t prelu_workspace(const PreluBackwardParams& p) {
  return cells_of(p).parts(kMostParts) * p.channels;
}

void prelu_backward(const PreluBackwardParams& p, void* workspace, Stream stream) {
  if (p.channels == 0) return;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    const Cells c = cells_of(p);
    const int count = c.parts(kMostParts);  // 0 of an empty tensor: dw is 0 then
    C* parts = static_cast<C*>(workspace);
    if (count > 0) {
      const PreluGradients<T> r{static_cast<const T*>(p.dy), static_cast<const T*>(p.x),
                                static_cast<const T*>(p.w), static_cast<T*>(p.dx)};
      reduce_cells(r, parts, count, c, stream);
    }
    if (p.dw == nullptr) return;
    launch(finish_weights<T>, grid_for(p.channels, kRowWarps), dim3(kChannelThreads), 0, stream,
           static_cast<const C*>(parts), count, p.channels, static_cast<T*>(p.dw));
  });
}

void glu_forward(const GluParams& p, Stream stream) {
  const int64_t n = p.outer * p.half;
  if (n == 0) return;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const T* x = static_cast<const T*>(p.x);
    T* y = static_cast<T*>(p.y);
    visit_halves<T>(
        p.half,
        [&](auto numbers) {
          constexpr int N = decltype(numbers)::kValue;
          launch(glu_kernel<N, T>, grid_for(n / N, kChannelThreads), dim3(kChannelThreads), 0, stream, x, y,
                 n, p.half, Divisor<int64_t>(p.half));
        },
        x, y);
  });
}

void glu_backward(const GluBackwardParams& p, Stream stream) {
  const int64_t n = p.outer * p.half;
  if (n == 0) return;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const T *dy = static_cast<const T*>(p.dy), *x = static_cast<const T*>(p.x);
    T* dx = static_cast<T*>(p.dx);
    visit_halves<T>(
        p.half,
        [&](auto numbers) {
          constexpr int N = decltype(numbers)::kValue;
          launch(glu_gradient_kernel<N, T>, grid_for(n / N, kChannelThreads), dim3(kChannelThreads), 0,
                 stream, dy, x, dx, n, p.half, Divisor<int64_t>(p.half));
        },
        dy, x, dx);
  });
}

}  // namespace fastnn::cuda
