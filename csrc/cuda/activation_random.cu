// RReLU in training: y = sign <= 0 ? r x : x, one random word per element, forward and backward alike.
//
// Bound by memory. r = lower + u (upper - lower), u as on the CPU (csrc/cpu/kernels/activation_random.cpp):
// the upper 24 bits of the word, 31 for double, over their range. A Philox call makes four words, so a thread
// takes four elements, or a pack where that is more.
#include "cuda/activation.h"
#include "cuda/philox.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Slope {
  using C = Compute<T>;
  static constexpr int kBits = sizeof(C) == 8 ? 31 : 24;
  C lower, step;
  PhiloxStream stream;
  const uint64_t* on_device;

  __device__ __forceinline__ C operator()(C x, C sign, uint32_t word) const {
    const C r = lower + static_cast<C>(static_cast<int32_t>(word >> (32 - kBits))) * step;
    return sign <= C(0) ? x * r : x;
  }
};

// Elements of one thread.
template <class T>
constexpr int kRun = Pack<T>::N > 4 ? Pack<T>::N : 4;

// kPacked: x, sign and y are aligned to 16 bytes.
template <bool kPacked, class T>
__global__ void __launch_bounds__(kThreads, kTwoBlocks)
    rrelu_kernel(const T* x, const T* sign, T* y, int64_t n, Slope<T> slope) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kRun<T>;
  if (first >= n) return;
  const PhiloxStream stream = resolve(slope.stream, slope.on_device);
  Words words[kRun<T> / 4];
#pragma unroll
  for (int k = 0; k < kRun<T> / 4; ++k) words[k] = philox(static_cast<uint64_t>(first / 4 + k), stream);
  if (kPacked && first + kRun<T> <= n) {
#pragma unroll
    for (int p = 0; p < kRun<T>; p += Pack<T>::N) {
      const Pack<T> in = load_pack(x + first + p), signs = load_pack(sign + first + p);
      Pack<T> out;
#pragma unroll
      for (int j = 0; j < Pack<T>::N; ++j) {
        out.v[j] = store<T>(slope(load(in.v[j]), load(signs.v[j]), words[(p + j) / 4].v[(p + j) % 4]));
      }
      store_pack(y + first + p, out);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kRun<T>; ++j) {
      const int64_t i = first + j;
      if (i < n) y[i] = store<T>(slope(load(x[i]), load(sign[i]), words[j / 4].v[j % 4]));
    }
  }
}

}  // namespace

void rrelu(const RreluParams& p, Stream stream) {
  if (p.n == 0) return;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    const T *x = static_cast<const T*>(p.x), *sign = static_cast<const T*>(p.sign);
    T* y = static_cast<T*>(p.y);
    const C lower = static_cast<C>(p.lower);
    const C step = (static_cast<C>(p.upper) - lower) / static_cast<C>(uint32_t{1} << Slope<T>::kBits);
    const bool packed = is_aligned(x) && is_aligned(sign) && is_aligned(y);
    launch(packed ? rrelu_kernel<true, T> : rrelu_kernel<false, T>,
           grid_for(ceil_div(p.n, kRun<T>), kThreads), dim3(kThreads), 0, stream, x, sign, y, p.n,
           Slope<T>{lower, step, {p.seed, p.offset}, p.stream});
  });
}

}  // namespace fastnn::cuda
