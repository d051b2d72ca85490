// Dropout: y = keep ? x * scale + kept : x * 0 + dropped, one decision for an element or a feature map.
#include "cpu/kernels/dropout.h"

#include "cpu/kernels/philox.h"

namespace {

using fastnn::Compute;
using fastnn::cpu::DropoutOps;

template <class V>
struct Factors {
  V scale, kept, dropped;
};

// x * scale + kept, or, dropped, x * 0 + dropped: 0 * inf is NaN, as in torch's product with a mask.
template <bool kShift, class V>
FASTNN_INLINE V apply(V x, Mask<typename V::Scalar> drop, const Factors<V>& f) {
  const V factor = V::from_bits(f.scale.bits() & ~drop.v);
  if constexpr (kShift) return x * factor + select(drop, f.dropped, f.kept);
  return x * factor;
}

template <bool kShift, class T>
FASTNN_INLINE void elements_loop(const T* x, T* y, int64_t first, int64_t n, const PhiloxStream& stream,
                                 uint32_t threshold, const Factors<Vec<Compute<T>>>& f) {
  using V = Vec<Compute<T>>;
  const auto each = [&](int64_t i, I32 drop, int count) __attribute__((always_inline)) {
    for_each_piece<V>(drop, count, [&](int at, auto piece, int lanes) __attribute__((always_inline)) {
      const Mask<Compute<T>> mask = {__builtin_convertvector(piece, typename V::IntRaw)};
      store_n(y + i + at, apply<kShift>(load_n(x + i + at, lanes), mask, f), lanes);
    });
  };
  for_each_decision(first, n, stream, threshold, each);
}

template <class T>
void elements(const T* x, T* y, int64_t first, int64_t n, PhiloxStream stream, uint32_t threshold,
              Compute<T> scale, Compute<T> kept, Compute<T> dropped) {
  const Factors<Vec<Compute<T>>> f = {scale, kept, dropped};
  if (kept == 0 && dropped == 0) {
    elements_loop<false>(x, y, first, n, stream, threshold, f);
  } else {
    elements_loop<true>(x, y, first, n, stream, threshold, f);
  }
}

template <class T>
void features(const T* x, T* y, int64_t first, int64_t n, int64_t length, PhiloxStream stream,
              uint32_t threshold, Compute<T> scale, Compute<T> kept, Compute<T> dropped) {
  using V = Vec<Compute<T>>;
  for_each_decision(first, n, stream, threshold, [&](int64_t i, I32 drops, int count) {
    for (int lane = 0; lane < count; ++lane) {
      const bool drop = drops[lane] != 0;
      const V factor(drop ? Compute<T>(0) : scale), shift(drop ? dropped : kept);
      const int64_t at = (i + lane) * length;
      for_each_vec<V>(length, [&](int64_t j, int lanes) __attribute__((always_inline)) {
        store_n(y + at + j, load_n(x + at + j, lanes) * factor + shift, lanes);
      });
    }
  });
}

template <class T>
void relu(const T* x, T* y, int64_t first, int64_t n, PhiloxStream stream, uint32_t threshold,
          Compute<T> scale) {
  using V = Vec<Compute<T>>;
  const V factor(scale), zero(0);
  const auto each = [&](int64_t i, I32 drop, int count) __attribute__((always_inline)) {
    for_each_piece<V>(drop, count, [&](int at, auto piece, int lanes) __attribute__((always_inline)) {
      const auto dropped = __builtin_convertvector(piece, typename V::IntRaw);
      const V kept = V::from_bits(factor.bits() & ~dropped);
      store_n(y + i + at, max(zero, load_n(x + i + at, lanes)) * kept, lanes);  // a NaN of x stays
    });
  };
  for_each_decision(first, n, stream, threshold, each);
}

template <class T>
void relu_backward(const T* dy, const T* y, T* dx, int64_t n, Compute<T> scale) {
  using V = Vec<Compute<T>>;
  const V factor(scale), zero(0);
  for_each_vec<V>(n, [&](int64_t i, int lanes) {
    store_n(dx + i, select(load_n(y + i, lanes) <= zero, zero, load_n(dy + i, lanes) * factor), lanes);
  });
}

void random(uint32_t* words, uint64_t counter, int64_t n, PhiloxStream stream) {
  for (int64_t i = 0; i < n; i += 2 * kWords, counter += kCounters) {
    const Batch batch = philox(counter, stream);
    const int64_t left = n - i < 2 * kWords ? n - i : 2 * kWords;
    __builtin_memcpy(words + i, &batch, static_cast<size_t>(left) * sizeof(uint32_t));
  }
}

template <class T>
constexpr DropoutOps<T> kOps = {elements<T>, features<T>, relu<T>, relu_backward<T>};

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const DropoutKernels dropout;
const DropoutKernels dropout = {kOps<float>, kOps<double>, kOps<BFloat16>, kOps<Float16>, random};
}  // namespace fastnn::cpu::FASTNN_ISA
