// The counter-based generator Philox4x32-7 and what is drawn from it (fastnn/philox.h).
//
// A register holds one word of N/2 counters in its 64-bit lanes (N = 32-bit lanes), the upper halves
// unused: exactly what the 32 x 32 -> 64 multiplication takes and gives, so a round is two multiplications,
// two shifts and four exclusive-ors without a shuffle. The counters are dealt to the lanes in the order that
// makes the final interleaving of the four words two unpack instructions.
#pragma once
#include "cpu/simd/vec.h"
#include "fastnn/philox.h"

namespace {

using fastnn::PhiloxStream;

typedef uint64_t U64 __attribute__((vector_size(kVecBytes)));
typedef uint32_t U32 __attribute__((vector_size(kVecBytes)));
typedef int32_t I32 __attribute__((vector_size(kVecBytes)));
typedef uint16_t U16 __attribute__((vector_size(kVecBytes)));
typedef int32_t HalfI32 __attribute__((vector_size(kVecBytes / 2)));

constexpr int kCounters = kVecBytes / 8;                   // per batch
constexpr int kWords = kVecBytes / 4;                      // per register
constexpr int kBlock = fastnn::kPhiloxBatch / 2 / kWords;  // registers of words for a batch of decisions
static_assert(kBlock % 2 == 0);

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
  for (int round = 0; round < fastnn::kPhiloxRounds; ++round) {
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

// f(offset, words, count) over the words of the indices [first, first + n), a register of them at a time, of
// which `count` are wanted. `first` is a multiple of the batch.
template <class F>
FASTNN_INLINE void for_each_draw(int64_t first, int64_t n, const PhiloxStream& stream, const F& f) {
  uint64_t counter = static_cast<uint64_t>(first) / 4;
  int64_t i = 0;
  for (; i + 2 * kWords <= n; i += 2 * kWords, counter += kCounters) {
    const Batch words = philox(counter, stream);
    f(i, words.low, kWords);
    f(i + kWords, words.high, kWords);
  }
  if (i < n) {
    const Batch words = philox(counter, stream);
    const int rest = static_cast<int>(n - i);
    f(i, words.low, rest < kWords ? rest : kWords);
    if (rest > kWords) f(i + kWords, words.high, rest - kWords);
  }
}

FASTNN_INLINE bool any(U64 bits) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)bits, (__m512i)bits) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256((__m256i)bits, (__m256i)bits) == 0;
#else
  return (bits[0] | bits[1]) != 0;
#endif
}

struct Words {
  U32 at[kBlock];
};
FASTNN_INLINE Words block_words(int64_t block, const PhiloxStream& stream) {
  Words words;
  for (int j = 0; j < kBlock; j += 2) {
    const Batch batch = philox(static_cast<uint64_t>(block * kBlock / 2 + j / 2) * kCounters, stream);
    words.at[j] = batch.low;
    words.at[j + 1] = batch.high;
  }
  return words;
}

struct Decisions {
  I32 at[2 * kBlock];
};
FASTNN_INLINE Decisions decide(int64_t block, const PhiloxStream& stream, uint32_t threshold) {
  constexpr uint32_t kUpper = 0xffff0000;
  const uint32_t upper = threshold & kUpper, lower = threshold << 16;
  const U16 even = static_cast<uint16_t>(threshold >> 16) - U16{};
  const Words words = block_words(block, stream);
  Decisions drop;
  U16 ties = {};
  for (int j = 0; j < kBlock; ++j) {
    drop.at[j] = (I32)(words.at[j] << 16 < upper);
    drop.at[kBlock + j] = (I32)(words.at[j] < upper);
    ties |= (U16)((U16)words.at[j] == even);
  }
  if (__builtin_expect(any((U64)ties), 0)) {
    const Words more = block_words(block, {stream.seed, stream.offset ^ uint64_t{1} << 63});
    for (int j = 0; j < kBlock; ++j) {
      drop.at[j] |= (I32)((words.at[j] << 16 == upper) & (more.at[j] << 16 < lower));
      drop.at[kBlock + j] |= (I32)(((words.at[j] & kUpper) == upper) & ((more.at[j] & kUpper) < lower));
    }
  }
  return drop;
}

// f(offset, drop, count) over the decisions of the indices [first, first + n), a register of masks at a time,
// of which `count` are wanted.
template <class F>
FASTNN_INLINE void for_each_decision(int64_t first, int64_t n, const PhiloxStream& stream, uint32_t threshold,
                                     const F& f) {
  constexpr int64_t kBatch = fastnn::kPhiloxBatch;
  const auto part = [&](int64_t i, int64_t skip, int64_t end) {  // indices i + skip ... i + end of a batch
    const Decisions drop = decide((first + i) / kBatch, stream, threshold);
    int32_t masks[kBatch + kWords];
    __builtin_memcpy(masks, &drop, sizeof drop);
    for (int64_t j = skip; j < end; j += kWords) {
      I32 some;
      __builtin_memcpy(&some, masks + j, sizeof some);
      f(i + j, some, static_cast<int>(end - j < kWords ? end - j : kWords));
    }
  };
  int64_t i = -(first % kBatch);
  if (i < 0) {
    part(i, -i, n - i < kBatch ? n - i : kBatch);
    i += kBatch;
  }
  for (; i + kBatch <= n; i += kBatch) {
    const Decisions drop = decide((first + i) / kBatch, stream, threshold);
    for (int j = 0; j < 2 * kBlock; ++j) f(i + j * kWords, drop.at[j], kWords);
  }
  if (i < n) part(i, 0, n - i);
}

// What was made of a register of words, in pieces for V: one register of floats or two of doubles.
// f(offset, piece, lanes): piece has V::N integers, of which `lanes` are wanted.
template <class V, class F>
FASTNN_INLINE void for_each_piece(I32 made, int count, const F& f) {
  if constexpr (V::N == kWords) {
    f(0, made, count);
  } else {
    HalfI32 half[2];
    __builtin_memcpy(half, &made, sizeof made);
    f(0, half[0], count < V::N ? count : V::N);
    if (count > V::N) f(V::N, half[1], count - V::N);
  }
}

}  // namespace
