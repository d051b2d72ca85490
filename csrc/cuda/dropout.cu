// Dropout, y = keep ? x * scale + kept : x * 0 + dropped, with the decisions of the CPU kernel.
//
// Bound by memory. Elements: the two halves of a word decide elements 32 apart, so a thread takes the packs
// at i and i + 32 of a batch of 64: one Philox call (two for 16-bit types) makes 8 decisions (16), and
// neighbouring threads read neighbouring 16 bytes of the same 128. Feature maps: a thread takes a pack and
// draws once for each map that the pack touches.
#include <cmath>

#include "cuda/dropout.h"
#include "cuda/philox.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kThreads = 256;

template <class C>
struct Rule {
  C scale, kept, dropped;
  uint32_t threshold;
  PhiloxStream stream;
  const uint64_t* on_device;

  __device__ __forceinline__ C operator()(C x, bool drop) const {
    return drop ? x * C(0) + dropped : x * scale + kept;  // 0 * inf is NaN, as in torch's product with a mask
  }
};

// Elements that one thread takes at i and again at i + 32.
template <class T>
constexpr int kRun = Pack<T>::N > 4 ? Pack<T>::N : 4;

// kPacked: x and y are aligned to 16 bytes.
template <bool kPacked, class T>
__global__ void __launch_bounds__(kThreads)
    elements_kernel(const T* x, T* y, int64_t n, Rule<Compute<T>> rule) {
  constexpr int kPerBatch = 32 / kRun<T>;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t batch = thread / kPerBatch;
  const int at = static_cast<int>(thread % kPerBatch) * kRun<T>;
  const int64_t first = batch * kPhiloxBatch + at;
  if (first >= n) return;
  const PhiloxStream stream = resolve(rule.stream, rule.on_device);
  unsigned drop[kRun<T> / 4];
#pragma unroll
  for (int k = 0; k < kRun<T> / 4; ++k) {
    drop[k] = decide(static_cast<uint64_t>(batch) * 8 + at / 4 + k, stream, rule.threshold);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t begin = first + 32 * half;
    if (kPacked && begin + kRun<T> <= n) {
#pragma unroll
      for (int p = 0; p < kRun<T>; p += Pack<T>::N) {
        Pack<T> pack = load_pack(x + begin + p);
#pragma unroll
        for (int j = 0; j < Pack<T>::N; ++j) {
          const bool dropped = (drop[(p + j) / 4] >> ((p + j) % 4 + 4 * half) & 1) != 0;
          pack.v[j] = store<T>(rule(load(pack.v[j]), dropped));
        }
        store_pack(y + begin + p, pack);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kRun<T>; ++j) {
        const bool dropped = (drop[j / 4] >> (j % 4 + 4 * half) & 1) != 0;
        if (begin + j < n) y[begin + j] = store<T>(rule(load(x[begin + j]), dropped));
      }
    }
  }
}

template <bool kPacked, class T>
__global__ void __launch_bounds__(kThreads)
    features_kernel(const T* x, T* y, int64_t n, int64_t length, Rule<Compute<T>> rule) {
  constexpr int N = Pack<T>::N;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (first >= n) return;
  const PhiloxStream stream = resolve(rule.stream, rule.on_device);
  const bool whole = kPacked && first + N <= n;
  Pack<T> pack;
  if (whole) {
    pack = load_pack(x + first);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = first + j < n ? x[first + j] : T{};
  }
  int64_t map = first / length, end = (map + 1) * length;
  bool drop = decision(map, stream, rule.threshold);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (first + j == end && end < n) {
      end += length;
      drop = decision(++map, stream, rule.threshold);
    }
    pack.v[j] = store<T>(rule(load(pack.v[j]), drop));
  }
  if (whole) {
    store_pack(y + first, pack);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (first + j < n) y[first + j] = pack.v[j];
  }
}

template <class T>
void run(const DropoutParams& p, Stream stream) {
  using C = Compute<T>;
  const Rule<C> rule{static_cast<C>(p.scale), static_cast<C>(p.kept), static_cast<C>(p.dropped),
                     dropout_threshold(p.p),  {p.seed, p.offset},     p.stream};
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const int64_t n = p.decisions * p.length;
  const bool packed = is_aligned(x) && is_aligned(y);
  if (p.length == 1) {
    const int64_t threads = ceil_div(n, kPhiloxBatch) * (32 / kRun<T>);
    launch(packed ? elements_kernel<true, T> : elements_kernel<false, T>, grid_for(threads, kThreads),
           dim3(kThreads), 0, stream, x, y, n, rule);
  } else {
    launch(packed ? features_kernel<true, T> : features_kernel<false, T>,
           grid_for(ceil_div(n, Pack<T>::N), kThreads), dim3(kThreads), 0, stream, x, y, n, p.length, rule);
  }
}

__global__ void write_stream_kernel(GeneratorState state, uint64_t* out) {
  const bool captured = state.seed_pointer != nullptr;
  out[0] = captured ? static_cast<uint64_t>(*state.seed_pointer) : state.seed;
  out[1] = captured ? static_cast<uint64_t>(*state.offset_pointer) + state.offset_in_graph : state.offset;
}

}  // namespace

void dropout(const DropoutParams& p, Stream stream) {
  if (p.decisions == 0 || p.length == 0) return;
  visit(p.dtype, [&](auto element) { run<decltype(element)>(p, stream); });
}

void write_stream(const GeneratorState& state, uint64_t* out, Stream stream) {
  launch(write_stream_kernel, dim3(1), dim3(1), 0, stream, state, out);
}

}  // namespace fastnn::cuda
