// Dropout with the counter-based generator Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random
// numbers: as easy as 1, 2, 3, SC 2011).
//
// A register holds one word of N/2 counters in its 64-bit lanes (N = 32-bit lanes), the upper halves
// unused: exactly what the 32 x 32 -> 64 multiplication takes and gives, so a round is two multiplications,
// two shifts and four exclusive-ors without a shuffle. The counters are dealt to the lanes in the order that
// makes the final interleaving of the four words two unpack instructions.
#include "cpu/kernels/dropout.h"

#include "cpu/simd/vec.h"

namespace {

using fastnn::Compute;
using fastnn::cpu::DropoutOps;
using fastnn::cpu::kDropoutBatch;
using fastnn::cpu::PhiloxStream;

typedef uint64_t U64 __attribute__((vector_size(kVecBytes)));
typedef uint32_t U32 __attribute__((vector_size(kVecBytes)));
typedef int32_t I32 __attribute__((vector_size(kVecBytes)));
typedef int32_t HalfI32 __attribute__((vector_size(kVecBytes / 2)));

constexpr int kCounters = kVecBytes / 8;  // per batch
constexpr int kWords = kVecBytes / 4;     // per register
static_assert(kDropoutBatch % (4 * kCounters) == 0);

// The product of the lower halves of the 64-bit lanes.
FASTNN_INLINE U64 multiply(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

FASTNN_INLINE U64 splat(uint64_t a) {
  return a - U64{};
}

// Lane 2j holds counter j, lane 2j + 1 counter kCounters / 2 + j.
FASTNN_INLINE U64 counter_order() {
  U64 order = {};
  for (int j = 0; j < kCounters / 2; ++j) {
    order[2 * j] = j;
    order[2 * j + 1] = kCounters / 2 + j;
  }
  return order;
}

// Words of the indices 4 * counter ... 4 * (counter + kCounters) - 1, in order.
struct Batch {
  U32 low, high;
};

FASTNN_INLINE U32 unpack_low(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U32)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U32)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
#else
  return (U32)U64{a[0], b[0]};
#endif
}
FASTNN_INLINE U32 unpack_high(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U32)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U32)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
#else
  return (U32)U64{a[1], b[1]};
#endif
}

FASTNN_INLINE Batch philox(uint64_t counter, const PhiloxStream& s) {
  const U64 m0 = splat(0xD2511F53), m1 = splat(0xCD9E8D57);
  const U64 index = splat(counter) + counter_order();
  U64 c0 = index, c1 = index >> 32, c2 = splat(s.offset), c3 = splat(s.offset >> 32);
  uint32_t k0 = static_cast<uint32_t>(s.seed), k1 = static_cast<uint32_t>(s.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const U64 p0 = multiply(c0, m0), p1 = multiply(c2, m1);
    c0 = (p1 >> 32) ^ c1 ^ splat(k0);  // upper halves: garbage that no multiplication reads
    c2 = (p0 >> 32) ^ c3 ^ splat(k1);
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  const U64 lower = splat(0xffffffff);
  const U64 first = (c0 & lower) | (c1 << 32), second = (c2 & lower) | (c3 << 32);
  return {unpack_low(first, second), unpack_high(first, second)};
}

// All ones where the word is below the threshold: dropped.
FASTNN_INLINE I32 dropped_lanes(U32 words, uint32_t threshold) {
  return (I32)(words < (threshold - U32{}));
}

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

// One register of words: one of floats, or two of doubles. `n` elements of it exist.
template <bool kShift, class T, class V>
FASTNN_INLINE void apply_words(const T* x, T* y, U32 words, uint32_t threshold, int n, const Factors<V>& f) {
  const I32 drop = dropped_lanes(words, threshold);
  if constexpr (__is_same(T, double)) {
    HalfI32 half[2];
    __builtin_memcpy(half, &drop, sizeof drop);
    for (int h = 0; h < 2 && n > h * V::N; ++h) {
      const int lanes = n - h * V::N < V::N ? n - h * V::N : V::N;
      const Mask<double> m = {__builtin_convertvector(half[h], Register<double>::Int)};
      store_n(y + h * V::N, apply<kShift>(load_n(x + h * V::N, lanes), m, f), lanes);
    }
  } else {
    store_n(y, apply<kShift>(load_n(x, n), Mask<float>{drop}, f), n);
  }
}

template <bool kShift, class T>
FASTNN_INLINE void elements_loop(const T* x, T* y, int64_t first, int64_t n, const PhiloxStream& stream,
                                 uint32_t threshold, const Factors<Vec<Compute<T>>>& f) {
  uint64_t counter = static_cast<uint64_t>(first) / 4;
  int64_t i = 0;
  for (; i + 2 * kWords <= n; i += 2 * kWords, counter += kCounters) {
    const Batch words = philox(counter, stream);
    apply_words<kShift>(x + i, y + i, words.low, threshold, kWords, f);
    apply_words<kShift>(x + i + kWords, y + i + kWords, words.high, threshold, kWords, f);
  }
  if (i < n) {
    const Batch words = philox(counter, stream);
    const int rest = static_cast<int>(n - i);
    apply_words<kShift>(x + i, y + i, words.low, threshold, rest < kWords ? rest : kWords, f);
    if (rest > kWords) {
      apply_words<kShift>(x + i + kWords, y + i + kWords, words.high, threshold, rest - kWords, f);
    }
  }
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
