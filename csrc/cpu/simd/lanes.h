// Maximum and sum over the lanes of one register, and the neutral lanes beyond the end of a row.
#pragma once
#include "cpu/simd/vec.h"

namespace {

template <class V>
FASTNN_INLINE V minus_infinity() {
  return V(static_cast<typename V::Scalar>(-__builtin_inf()));
}

// The first `n` lanes of v, minus infinity in the others: they add nothing to a maximum or a sum of
// exponentials.
template <class T>
FASTNN_INLINE Vec<T> lanes_or_lowest(Vec<T> v, int n) {
  return n == Vec<T>::N ? v : select(iota<T>() < Vec<T>(static_cast<T>(n)), v, minus_infinity<Vec<T>>());
}

// op over all lanes, in every lane: halves are exchanged and combined, log2(lanes) times, without leaving
// the registers. Both partners compute the same number, so the lanes agree in every bit.
template <class T, class Op>
FASTNN_INLINE Vec<T> over_lanes(Vec<T> a, const Op& op) {
  for (int distance = Vec<T>::N / 2; distance > 0; distance /= 2) {
    typename Vec<T>::IntRaw partner{};
    for (int i = 0; i < Vec<T>::N; ++i) partner[i] = i ^ distance;
    a = op(a, Vec<T>(__builtin_shuffle(a.v, partner)));
  }
  return a;
}
template <class T>
FASTNN_INLINE Vec<T> max_of_lanes(Vec<T> a) {
  return over_lanes(a, [](Vec<T> x, Vec<T> y) { return max(x, y); });
}
template <class T>
FASTNN_INLINE Vec<T> sum_of_lanes(Vec<T> a) {
  return over_lanes(a, [](Vec<T> x, Vec<T> y) { return x + y; });
}

}  // namespace
