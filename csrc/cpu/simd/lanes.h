// Maximum and sum over the lanes of one register, and the neutral lanes beyond the end of a row.
#pragma once
#include "cpu/simd/vec.h"

namespace {

// The numbers 0 to N - 1 as a list of template arguments.
template <int... I>
struct Lanes {};
template <int N, int... I>
struct LanesUpTo : LanesUpTo<N - 1, N - 1, I...> {};
template <int... I>
struct LanesUpTo<0, I...> {
  using type = Lanes<I...>;
};

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

// Lane i takes what lane i ^ D has. The lanes are a list known when compiling: from a loop gcc would make the
// list at run time, which takes longer than the shuffle.
template <int D, class T, int... I>
FASTNN_INLINE Vec<T> from_partners(Vec<T> a, Lanes<I...>) {
  return Vec<T>(__builtin_shufflevector(a.v, a.v, (I ^ D)...));
}

// op over all lanes, in every lane: halves are exchanged and combined, log2(lanes) times, without leaving
// the registers. Both partners compute the same number, so the lanes agree in every bit.
template <int D, class T, class Op>
FASTNN_INLINE Vec<T> over_lanes(Vec<T> a, const Op& op) {
  if constexpr (D == 0) {
    return a;
  } else {
    return over_lanes<D / 2>(op(a, from_partners<D>(a, typename LanesUpTo<Vec<T>::N>::type())), op);
  }
}
template <class T, class Op>
FASTNN_INLINE Vec<T> over_lanes(Vec<T> a, const Op& op) {
  return over_lanes<Vec<T>::N / 2>(a, op);
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
