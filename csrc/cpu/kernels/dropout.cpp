// Dropout: y = keep ? x * scale + kept : x * 0 + dropped, one random word for an element or a feature map.
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
  for_each_draw(first, n, stream, [&](int64_t i, U32 words, int count) __attribute__((always_inline)) {
    const I32 drop = (I32)(words < threshold);
    for_each_piece<V>(drop, count, [&](int at, auto piece, int lanes) __attribute__((always_inline)) {
      const Mask<Compute<T>> mask = {__builtin_convertvector(piece, typename V::IntRaw)};
      store_n(y + i + at, apply<kShift>(load_n(x + i + at, lanes), mask, f), lanes);
    });
  });
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
  uint32_t words[2 * kWords];
  for (int64_t i = 0; i < n; ++i) {
    const int64_t slot = i % (2 * kWords);
    if (slot == 0) {
      const Batch batch = philox(static_cast<uint64_t>(first + i) / 4, stream);
      __builtin_memcpy(words, &batch, sizeof words);
    }
    const bool drop = words[slot] < threshold;
    const V factor(drop ? Compute<T>(0) : scale), shift(drop ? dropped : kept);
    for_each_vec<V>(length, [&](int64_t j, int lanes) __attribute__((always_inline)) {
      store_n(y + i * length + j, load_n(x + i * length + j, lanes) * factor + shift, lanes);
    });
  }
}

void random(uint32_t* words, uint64_t counter, int64_t n, PhiloxStream stream) {
  for (int64_t i = 0; i < n; i += 2 * kWords, counter += kCounters) {
    const Batch batch = philox(counter, stream);
    const int64_t left = n - i < 2 * kWords ? n - i : 2 * kWords;
    __builtin_memcpy(words + i, &batch, static_cast<size_t>(left) * sizeof(uint32_t));
  }
}

template <class T>
constexpr DropoutOps<T> kOps = {elements<T>, features<T>};

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const DropoutKernels dropout;
const DropoutKernels dropout = {kOps<float>, kOps<double>, kOps<BFloat16>, kOps<Float16>, random};
}  // namespace fastnn::cpu::FASTNN_ISA
