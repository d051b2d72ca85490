// Depthwise convolution, one input channel to a group: bound by memory, so each output is summed by a thread
// from the caches, and the gradient of the weight is a reduction of channels.cuh over kPositions at a time.
#include "cuda/channels.cuh"
#include "cuda/conv/depthwise.cuh"
#include "cuda/conv/image.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kThreads = 256, kPositions = 9;

// y of x, or with kBack dx of dy. `made` is what is written, `multiplier` the output channels of an input
// channel.
template <class T, bool kBack>
struct Depthwise {
  using C = Compute<T>;
  Windows<T, kBack> windows;  // of what is read
  const T *w, *bias;          // bias: of what is made, or null
  T* made;
  int64_t n, channels;  // numbers and channels of what is made
  int positions[3], multiplier;
  Divisor<int64_t> by_channels, by_plane;
  bool last;
};

// N neighbouring channels of channels_last, or one number.
template <int N, class T, bool kBack>
__global__ void __launch_bounds__(kThreads, kTwoBlocks) depthwise_kernel(Depthwise<T, kBack> p) {
  using C = Compute<T>;
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= p.n) return;
  int64_t channel, pixel;
  if (p.last) {
    pixel = p.by_channels.quotient(i);
    channel = i - pixel * p.channels;
  } else {
    const int64_t plane = p.by_plane.quotient(i), image = p.by_channels.quotient(plane);
    channel = plane - image * p.channels;
    pixel = image * p.windows.pixels.plane + (i - plane * p.windows.pixels.plane);
  }
  const auto corner = p.windows.corner(pixel);
  const int count = p.positions[0] * p.positions[1] * p.positions[2];
  C sums[N];
#pragma unroll
  for (int j = 0; j < N; ++j) sums[j] = p.bias == nullptr ? C(0) : load(p.bias[channel + j]);
  // Channels of what is read: x has one, dy `multiplier` of them.
  const int64_t first = kBack ? channel * p.multiplier : channel / p.multiplier;
  for (int q = 0; q < (kBack ? p.multiplier : 1); ++q) {
    const T* w = p.w + (kBack ? first + q : channel) * count;
    Taps::Place tap{static_cast<int>(first) + q, 0, 0, 0};
    for (tap.d = 0; tap.d < p.positions[0]; ++tap.d) {
      for (tap.h = 0; tap.h < p.positions[1]; ++tap.h) {
#pragma unroll 4
        for (tap.w = 0; tap.w < p.positions[2]; ++tap.w, ++w) {
          const T* from = p.windows.at(corner, tap);
          if (from == nullptr) continue;
          if constexpr (N == 1) {
            sums[0] = fma(load(*from), load(*w), sums[0]);
          } else {
            const Pack<T> pack = load_pack(from);
#pragma unroll
            for (int j = 0; j < N; ++j) sums[j] = fma(load(pack.v[j]), load(w[j * count]), sums[j]);
          }
        }
      }
    }
  }
  if constexpr (N == 1) {
    p.made[i] = store<T>(sums[0]);
  } else {
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = store<T>(sums[j]);
    store_pack(p.made + i, pack);
  }
}

template <class T, bool kBack>
void run(const ConvGeometry& g, const void* read, const void* w, const void* bias, void* made,
         Stream stream) {
  const int64_t channels = kBack ? g.c : g.k;
  Depthwise<T, kBack> p{.windows = Windows<T, kBack>(g, read),
                        .w = static_cast<const T*>(w),
                        .bias = static_cast<const T*>(bias),
                        .made = static_cast<T*>(made),
                        .n = 0,
                        .channels = channels,
                        .positions = {},
                        .multiplier = static_cast<int>(g.k / g.g),
                        .by_channels = Divisor<int64_t>(channels),
                        .by_plane = {},
                        .last = g.channels_last};
  p.n = p.windows.pixels.count * channels;
  p.by_plane = Divisor<int64_t>(p.windows.pixels.plane);
  for (int d = 0; d < 3; ++d) p.positions[d] = static_cast<int>(g.kernel[d]);
  const auto start = [&](auto numbers) {
    constexpr int N = decltype(numbers)::kValue;
    launch(depthwise_kernel<N, T, kBack>, grid_for(p.n / N, kThreads), dim3(kThreads), 0, stream, p);
  };
  constexpr int P = Pack<T>::N;
  const bool packed =
      g.channels_last && p.multiplier == 1 && channels % P == 0 && is_aligned(read) && is_aligned(made);
  packed ? start(Int<P>()) : start(Int<1>());
}

// ---- The weight's gradient ----

struct Sums {
  double of[kPositions];
};
struct AddSums {
  __device__ __forceinline__ Sums operator()(Sums a, const Sums& b) const {
#pragma unroll
    for (int i = 0; i < kPositions; ++i) a.of[i] += b.of[i];
    return a;
  }
};
__device__ __forceinline__ Sums shuffle(Sums x, int mask) {
#pragma unroll
  for (double& sum : x.of) sum = cuda::shuffle(sum, mask);
  return x;
}

// Of kPositions from `first` on, over a channel of dy.
template <class T>
struct DepthwiseGradient {
  using C = Compute<T>;
  using V = Sums;
  using Join = AddSums;
  Windows<T, false> windows;
  const T* dy;
  int64_t channels;
  int multiplier, first, count;
  Divisor<int64_t> by_channels, by_plane;
  bool last;

  struct Thread {
    int channel;  // of x
    C sums[kPositions];
    __device__ __forceinline__ Sums result() const {
      Sums all;
#pragma unroll
      for (int i = 0; i < kPositions; ++i) all.of[i] = static_cast<double>(sums[i]);
      return all;
    }
  };
  __device__ __forceinline__ Thread start(int64_t cell) const {
    return {static_cast<int>(cell) / multiplier, {}};
  }
  __device__ __forceinline__ void add(Thread& t, int64_t at) const {
    int64_t pixel;
    if (last) {
      pixel = by_channels.quotient(at);
    } else {
      const int64_t plane = by_plane.quotient(at);
      pixel = by_channels.quotient(plane) * windows.pixels.plane + (at - plane * windows.pixels.plane);
    }
    const auto corner = windows.corner(pixel);
    const C g = load(dy[at]);
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
      if (i >= count) break;
      Taps::Place tap = windows.taps.place(first + i);  // of one channel: the positions
      tap.channel = t.channel;
      const T* from = windows.at(corner, tap);
      if (from != nullptr) t.sums[i] = fma(g, load(*from), t.sums[i]);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_gradient(const Sums* parts, int count, int64_t channels, int first, int positions, T* dw) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= channels) return;
  const Sums all = merged(parts, count, channels, c, AddSums());
#pragma unroll
  for (int i = 0; i < kPositions; ++i) {
    if (first + i < positions) dw[c * positions + first + i] = store<T>(static_cast<Compute<T>>(all.of[i]));
  }
}

Cells cells_of(const ConvBackwardWeightParams& p) {
  return Cells::of(p.n, p.k, p.out[0] * p.out[1] * p.out[2], p.channels_last, /*per_sample=*/false);
}

}  // namespace

void depthwise_forward(const ConvForwardParams& p, Stream stream) {
  visit(p.dtype, [&](auto element) { run<decltype(element), false>(p, p.x, p.w, p.b, p.y, stream); });
}
void depthwise_backward_data(const ConvBackwardDataParams& p, Stream stream) {
  visit(p.dtype, [&](auto element) { run<decltype(element), true>(p, p.dy, p.w, p.b, p.dx, stream); });
}

int64_t depthwise_workspace(const ConvBackwardWeightParams& p) {
  return cells_of(p).parts() * p.k * static_cast<int64_t>(sizeof(Sums));
}
void depthwise_backward_weight(const ConvBackwardWeightParams& p, void* workspace, Stream stream) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const Cells cells = cells_of(p);
    const int parts = cells.parts(), positions = static_cast<int>(p.kernel[0] * p.kernel[1] * p.kernel[2]);
    Sums* sums = static_cast<Sums*>(workspace);
    DepthwiseGradient<T> r{.windows = Windows<T, false>(p, p.x),
                           .dy = static_cast<const T*>(p.dy),
                           .channels = p.k,
                           .multiplier = static_cast<int>(p.k / p.g),
                           .first = 0,
                           .count = 0,
                           .by_channels = Divisor<int64_t>(p.k),
                           .by_plane = Divisor<int64_t>(cells.length),
                           .last = p.channels_last};
    for (; r.first < positions; r.first += kPositions) {
      r.count = positions - r.first < kPositions ? positions - r.first : kPositions;
      reduce_cells(r, sums, parts, cells, stream);
      launch(finish_gradient<T>, grid_for(p.k, kThreads), dim3(kThreads), 0, stream,
             static_cast<const Sums*>(sums), parts, p.k, r.first, positions, static_cast<T*>(p.dw));
    }
  });
}

}  // namespace fastnn::cuda
