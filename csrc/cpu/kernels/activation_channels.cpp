// PReLU: y = x > 0 ? x : w x, dx = x > 0 ? dy : w dy, dw = sum of x dy over x <= 0.
// GLU: y = u s, s = sigmoid(v); du = dy s, dv = dy u s (1 - s), where x = (u, v).
#include "cpu/kernels/activation_channels.h"

#include "cpu/simd/math.h"

namespace {

using namespace fastnn;

// Terms of dw that a lane adds in one chain, and chains that are added up then, of a chunk of 4096: the error
// grows with the sum of both, not with their product, as that of torch's pairwise sums does.
constexpr int64_t kChain = 16;

template <class V>
FASTNN_INLINE V prelu(V x, V w) {
  return select(x > V(0), x, w * x);
}

// The lanes' sum is formed in double: torch adds up in float, this costs nothing.
template <class T>
FASTNN_INLINE double sum_of_lanes(Vec<T> v) {
  double sum = 0;
  for (int i = 0; i < Vec<T>::N; ++i) sum += v[i];
  return sum;
}

void prelu_row(const PreluParams& p, int64_t row, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using V = Vec<Compute<T>>;
    const T* x = static_cast<const T*>(p.x) + row * p.inner + begin;
    T* y = static_cast<T*>(p.y) + row * p.inner + begin;
    const V w(to_compute(static_cast<const T*>(p.w)[row % p.channels]));
    for_each_vec<V>(end - begin, [&](int64_t i, int n) { store_n(y + i, prelu(load_n(x + i, n), w), n); });
  });
}

double prelu_row_backward(const PreluBackwardParams& p, int64_t row, int64_t begin, int64_t end) {
  return visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using V = Vec<Compute<T>>;
    const int64_t base = row * p.inner + begin;
    const T *x = static_cast<const T*>(p.x) + base, *dy = static_cast<const T*>(p.dy) + base;
    T* dx = static_cast<T*>(p.dx) + base;
    const V w(to_compute(static_cast<const T*>(p.w)[row % p.channels]));
    V dw(0);
    for (int64_t from = 0, n = end - begin; from < n; from += kChain * V::N) {
      V sum(0);
      for_each_vec<V>(n - from < kChain * V::N ? n - from : kChain * V::N, [&](int64_t i, int lanes) {
        const V v = load_n(x + from + i, lanes), g = load_n(dy + from + i, lanes);
        sum += select(v > V(0), V(0), v * g);  // lanes beyond the end are 0
        store_n(dx + from + i, select(v > V(0), g, w * g), lanes);
      });
      dw += sum;
    }
    return sum_of_lanes(dw);
  });
}

void prelu_channels(const PreluParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using V = Vec<Compute<T>>;
    const T* w = static_cast<const T*>(p.w);
    for (int64_t o = begin; o < end; ++o) {
      const T* x = static_cast<const T*>(p.x) + o * p.channels;
      T* y = static_cast<T*>(p.y) + o * p.channels;
      for_each_vec<V>(p.channels, [&](int64_t c, int n) {
        store_n(y + c, prelu(load_n(x + c, n), load_n(w + c, n)), n);
      });
    }
  });
}

void prelu_channels_backward(const PreluBackwardParams& p, int64_t begin, int64_t end, double* dw) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using V = Vec<Compute<T>>;
    const T *x = static_cast<const T*>(p.x), *dy = static_cast<const T*>(p.dy);
    T* dx = static_cast<T*>(p.dx);
    // Channels outside, rows inside: the block of rows fits the first-level cache and dw stays in a register.
    for_each_vec<V>(p.channels, [&](int64_t c, int n) {
      const V w = load_n(static_cast<const T*>(p.w) + c, n);
      V total(0);
      for (int64_t o = begin; o < end;) {
        V sum(0);
        for (const int64_t last = end - o < kChain ? end : o + kChain; o < last; ++o) {
          const int64_t at = o * p.channels + c;
          const V v = load_n(x + at, n), g = load_n(dy + at, n);
          sum += select(v > V(0), V(0), v * g);
          store_n(dx + at, select(v > V(0), g, w * g), n);
        }
        total += sum;
      }
      for (int i = 0; i < n; ++i) dw[c + i] = total[i];
    });
  });
}

void prelu_store_dw(const PreluBackwardParams& p, const double* dw) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t c = 0; c < p.channels; ++c)
      static_cast<T*>(p.dw)[c] = from_compute<T>(static_cast<Compute<T>>(dw[c]));
  });
}

void gate(const GluParams& p, int64_t o, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using V = Vec<Compute<T>>;
    const T* u = static_cast<const T*>(p.x) + 2 * o * p.half + begin;
    const T* v = u + p.half;
    T* y = static_cast<T*>(p.y) + o * p.half + begin;
    for_each_vec<V>(end - begin, [&](int64_t i, int n) {
      store_n(y + i, load_n(u + i, n) * sigmoid(load_n(v + i, n)), n);
    });
  });
}

void gate_backward(const GluBackwardParams& p, int64_t o, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using V = Vec<Compute<T>>;
    const int64_t base = 2 * o * p.half + begin;
    const T *u = static_cast<const T*>(p.x) + base, *v = u + p.half;
    const T* dy = static_cast<const T*>(p.dy) + o * p.half + begin;
    T *du = static_cast<T*>(p.dx) + base, *dv = du + p.half;
    for_each_vec<V>(end - begin, [&](int64_t i, int n) {
      const V s = sigmoid(load_n(v + i, n)), ds = load_n(dy + i, n) * s;
      store_n(dv + i, ds * (V(1) - s) * load_n(u + i, n), n);  // u last: it may be huge where 1 - s is 0
      store_n(du + i, ds, n);
    });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const ActivationChannelsKernels activation_channels;
const ActivationChannelsKernels activation_channels = {
    prelu_row, prelu_row_backward, prelu_channels, prelu_channels_backward, prelu_store_dw,
    gate,      gate_backward};
}  // namespace fastnn::cpu::FASTNN_ISA
