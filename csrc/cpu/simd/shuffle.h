// De-interleaving and interleaving of two registers, and narrow integers next to a register of reals.
#pragma once
#include "cpu/simd/vec.h"

namespace {

// The compiler needs the lane numbers as a literal to choose an instruction for them.
template <int N, class Int>
struct Lanes;
template <class Int>
struct Lanes<2, Int> {
  static FASTNN_INLINE Int even() { return Int{0, 2}; }
  static FASTNN_INLINE Int odd() { return Int{1, 3}; }
  static FASTNN_INLINE Int low() { return Int{0, 2}; }
  static FASTNN_INLINE Int high() { return Int{1, 3}; }
};
template <class Int>
struct Lanes<4, Int> {
  static FASTNN_INLINE Int even() { return Int{0, 2, 4, 6}; }
  static FASTNN_INLINE Int odd() { return Int{1, 3, 5, 7}; }
  static FASTNN_INLINE Int low() { return Int{0, 4, 1, 5}; }
  static FASTNN_INLINE Int high() { return Int{2, 6, 3, 7}; }
};
template <class Int>
struct Lanes<8, Int> {
  static FASTNN_INLINE Int even() { return Int{0, 2, 4, 6, 8, 10, 12, 14}; }
  static FASTNN_INLINE Int odd() { return Int{1, 3, 5, 7, 9, 11, 13, 15}; }
  static FASTNN_INLINE Int low() { return Int{0, 8, 1, 9, 2, 10, 3, 11}; }
  static FASTNN_INLINE Int high() { return Int{4, 12, 5, 13, 6, 14, 7, 15}; }
};
template <class Int>
struct Lanes<16, Int> {
  static FASTNN_INLINE Int even() { return Int{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}; }
  static FASTNN_INLINE Int odd() { return Int{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31}; }
  static FASTNN_INLINE Int low() { return Int{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}; }
  static FASTNN_INLINE Int high() {
    return Int{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  }
};

// Of the 2N numbers (a, b): those at even and at odd places.
template <class T>
FASTNN_INLINE Vec<T> even_lanes(Vec<T> a, Vec<T> b) {
  return __builtin_shuffle(a.v, b.v, Lanes<Vec<T>::N, typename Vec<T>::IntRaw>::even());
}
template <class T>
FASTNN_INLINE Vec<T> odd_lanes(Vec<T> a, Vec<T> b) {
  return __builtin_shuffle(a.v, b.v, Lanes<Vec<T>::N, typename Vec<T>::IntRaw>::odd());
}
// a0 b0 a1 b1 ...: the first and the second N numbers.
template <class T>
FASTNN_INLINE Vec<T> interleave_low(Vec<T> a, Vec<T> b) {
  return __builtin_shuffle(a.v, b.v, Lanes<Vec<T>::N, typename Vec<T>::IntRaw>::low());
}
template <class T>
FASTNN_INLINE Vec<T> interleave_high(Vec<T> a, Vec<T> b) {
  return __builtin_shuffle(a.v, b.v, Lanes<Vec<T>::N, typename Vec<T>::IntRaw>::high());
}

// As many integers of type K as Vec<T> has lanes.
template <class K, class T>
struct Narrow;
template <>
struct Narrow<uint8_t, float> {
  typedef uint8_t Raw __attribute__((vector_size(kVecBytes / 4)));
};
template <>
struct Narrow<uint8_t, double> {
  typedef uint8_t Raw __attribute__((vector_size(kVecBytes / 8)));
};
template <>
struct Narrow<int32_t, float> {
  typedef int32_t Raw __attribute__((vector_size(kVecBytes)));
};
template <>
struct Narrow<int32_t, double> {
  typedef int32_t Raw __attribute__((vector_size(kVecBytes / 2)));
};
template <>
struct Narrow<int64_t, double> {
  typedef int64_t Raw __attribute__((vector_size(kVecBytes)));
};

// The first n < N bytes at p, or numbers, into a narrow register and back; the other lanes read as 0.
template <class Raw, class K>
FASTNN_INLINE Raw load_first(const K* p, int n) {
  Raw narrow = {};
#if defined(__AVX512F__)
  if constexpr (sizeof(K) == 1) {
    const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << n) - 1), p);
    __builtin_memcpy(&narrow, &bytes, sizeof narrow);
    return narrow;
  }
#else
  if constexpr (sizeof(K) == 1) {  // at most 8: a register of them, without a trip through memory
    uint64_t bytes = 0;
    for (int i = 0; i < n; ++i) bytes |= static_cast<uint64_t>(p[i]) << (8 * i);
    __builtin_memcpy(&narrow, &bytes, sizeof narrow);
    return narrow;
  }
#endif
  for (int i = 0; i < n; ++i) narrow[i] = p[i];
  return narrow;
}
template <class Raw, class K>
FASTNN_INLINE void store_first(K* p, Raw narrow, int n) {
  if constexpr (sizeof(K) == 1) {
#if defined(__AVX512F__)
    __m128i bytes = _mm_setzero_si128();
    __builtin_memcpy(&bytes, &narrow, sizeof narrow);
    _mm_mask_storeu_epi8(p, static_cast<__mmask16>((1u << n) - 1), bytes);
#else
    uint64_t bytes = 0;
    __builtin_memcpy(&bytes, &narrow, sizeof narrow);
    for (int i = 0; i < n; ++i) p[i] = static_cast<K>(bytes >> (8 * i));
#endif
  } else {
    for (int i = 0; i < n; ++i) p[i] = narrow[i];
  }
}

// n integers as wide as the lanes of Vec<T>; the others read as 0.
template <class T, class K>
FASTNN_INLINE typename Vec<T>::IntRaw load_wide(const K* p, int n) {
  using Raw = typename Narrow<K, T>::Raw;
  Raw narrow;
  if (n == Vec<T>::N) {
    __builtin_memcpy(&narrow, p, sizeof narrow);
  } else {
    narrow = load_first<Raw>(p, n);
  }
  return __builtin_convertvector(narrow, typename Vec<T>::IntRaw);
}
template <class T, class K>
FASTNN_INLINE void store_narrow(K* p, typename Vec<T>::IntRaw wide, int n) {
  const auto narrow = __builtin_convertvector(wide, typename Narrow<K, T>::Raw);
  if (n == Vec<T>::N) {
    __builtin_memcpy(p, &narrow, sizeof narrow);
  } else {
    store_first(p, narrow, n);
  }
}

// The sum of the lanes, neighbours first: a fixed order, all in registers.
template <class T>
FASTNN_INLINE T sum_lanes(Vec<T> v) {
  for (int n = Vec<T>::N; n > 1; n /= 2) v = even_lanes(v, v) + odd_lanes(v, v);
  return v[0];
}

}  // namespace
