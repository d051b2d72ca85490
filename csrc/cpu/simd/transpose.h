// Exchanges between the lanes of several registers: the transpose of a square of lanes, and the sums of
// the lanes of several registers at once.
//
// Both work by stages. The stage of distance D (a power of two) takes registers a and b and swaps the
// upper D lanes of each pair of D-blocks of a with the lower ones of b: one shuffle per register, on any
// target.
#pragma once
#include "cpu/simd/lanes.h"

namespace {

template <int D, class T, int... I>
FASTNN_INLINE Vec<T> exchange_low(Vec<T> a, Vec<T> b, Lanes<I...>) {
  constexpr int kN = Vec<T>::N;
  return typename Vec<T>::Raw(__builtin_shufflevector(a.v, b.v, (I & D ? kN + I - D : I)...));
}
template <int D, class T, int... I>
FASTNN_INLINE Vec<T> exchange_high(Vec<T> a, Vec<T> b, Lanes<I...>) {
  constexpr int kN = Vec<T>::N;
  return typename Vec<T>::Raw(__builtin_shufflevector(a.v, b.v, (I & D ? kN + I : I + D)...));
}

// Lane j of v[i] and lane i of v[j] change places.
template <int D, class T>
FASTNN_INLINE void transpose(Vec<T> (&v)[Vec<T>::N]) {
  constexpr int kN = Vec<T>::N;
  using All = typename LanesUpTo<kN>::type;
#pragma GCC unroll 16
  for (int i = 0; i < kN; ++i) {
    if (i & D) continue;
    const Vec<T> a = v[i], b = v[i + D];
    v[i] = exchange_low<D>(a, b, All{});
    v[i + D] = exchange_high<D>(a, b, All{});
  }
  if constexpr (D > 1) transpose<D / 2>(v);
}
template <class T>
FASTNN_INLINE void transpose(Vec<T> (&v)[Vec<T>::N]) {
  transpose<Vec<T>::N / 2>(v);
}

// Lane i of the result: the sum of the lanes of v[i], i < Count (a power of two, at most N); the other
// lanes are unspecified. Lanes half a register apart are added first, whatever Count is.
template <int D, int Count, class T>
FASTNN_INLINE Vec<T> sum_lanes(Vec<T> (&v)[Count]) {
  using All = typename LanesUpTo<Vec<T>::N>::type;
  if constexpr (D == 0) {
    return v[0];
  } else if constexpr (D >= Count) {
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) v[i] += exchange_high<D>(v[i], v[i], All{});
    return sum_lanes<D / 2, Count>(v);
  } else {
    Vec<T> half[D];
#pragma GCC unroll 16
    for (int i = 0; i < D; ++i)
      half[i] = exchange_low<D>(v[i], v[i + D], All{}) + exchange_high<D>(v[i], v[i + D], All{});
    return sum_lanes<D / 2, D>(half);
  }
}
template <int Count, class T>
FASTNN_INLINE Vec<T> sum_lanes(Vec<T> (&v)[Count]) {
  static_assert(Count <= Vec<T>::N);
  return sum_lanes<Vec<T>::N / 2, Count>(v);
}

}  // namespace
