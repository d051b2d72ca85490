// Sums over a piece of memory: independent chains of additions, and registers of sums in double. Shared by
// the norms.
#pragma once
#include "cpu/simd/vec.h"

namespace {

constexpr int kSums = 4;  // independent sums hide the latency of addition

// f(offset, lanes, slot) over [0, n): four registers at a time, then one, then the lanes that are left.
template <class V, class F>
FASTNN_INLINE void for_each_unrolled(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kSums * V::N <= n; i += kSums * V::N) {
    f(i, V::N, 0);
    f(i + V::N, V::N, 1);
    f(i + 2 * V::N, V::N, 2);
    f(i + 3 * V::N, V::N, 3);
  }
  for (; i + V::N <= n; i += V::N) f(i, V::N, 0);
  if (i < n) f(i, static_cast<int>(n - i), 1);
}

// Zero in the lanes from n on.
template <class V>
FASTNN_INLINE V first_lanes(V a, int n) {
  using S = typename V::Scalar;
  return n == V::N ? a : select(iota<S>() < V(static_cast<S>(n)), a, V(S(0)));
}

// A register of sums in double. The deviations go here, added in float two or four together: their sum
// is small against them, and a chain of float additions would cost the mean digits that torch's has.
template <class T>
struct WideSum;
template <>
struct WideSum<double> {
  Vec<double> v = Vec<double>(0);
  FASTNN_INLINE void add(Vec<double> a) { v += a; }
  FASTNN_INLINE double total() const { return reduce_add(v); }
  FASTNN_INLINE double lane(int i) const { return v[i]; }
};
template <>
struct WideSum<float> {
  Vec<double> low = Vec<double>(0), high = Vec<double>(0);
  FASTNN_INLINE void add(Vec<float> a) {
    typedef float Half __attribute__((vector_size(kVecBytes / 2)));
    Half half[2];
    __builtin_memcpy(half, &a.v, sizeof half);
    low += Vec<double>(__builtin_convertvector(half[0], Register<double>::Real));
    high += Vec<double>(__builtin_convertvector(half[1], Register<double>::Real));
  }
  FASTNN_INLINE double total() const { return reduce_add(low + high); }
  FASTNN_INLINE double lane(int i) const { return i < Vec<double>::N ? low[i] : high[i - Vec<double>::N]; }
};

template <class V>
struct Sums {
  V v[kSums] = {V(0), V(0), V(0), V(0)};
  // The lanes are added in double: with few numbers to a lane, their own rounding would be most of the error.
  FASTNN_INLINE double total() const {
    WideSum<typename V::Scalar> wide;
    for (int i = 0; i < kSums; ++i) wide.add(v[i]);
    return wide.total();
  }
};

}  // namespace
