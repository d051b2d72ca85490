// What the sweeps over scores share: scale and mask, how much of a row is seen, dropout's factors; and the
// gradient of the scores.
#pragma once
#include "cpu/kernels/attention.h"
#include "cpu/kernels/philox.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/math.h"

namespace {

using fastnn::cpu::AttentionTile;

enum class Masking { kNone, kBool, kAdded };

// As many bytes as a register has lanes.
template <class T>
struct Bytes;
template <>
struct Bytes<float> {
  typedef uint8_t Raw __attribute__((vector_size(kVecBytes / 4)));
};
template <>
struct Bytes<double> {
  typedef uint8_t Raw __attribute__((vector_size(kVecBytes / 8)));
};

// Lanes whose byte is not 0.
template <class T>
FASTNN_INLINE Mask<T> load_bools(const uint8_t* p, int n) {
  typename Bytes<T>::Raw bytes = {};
  if (n == Vec<T>::N) {
    __builtin_memcpy(&bytes, p, sizeof bytes);
  } else {
    for (int i = 0; i < n; ++i) bytes[i] = p[i];
  }
  return {__builtin_convertvector(bytes, typename Vec<T>::IntRaw) != 0};
}

// The score x with the mask of the columns [j, j + n) of row r.
template <Masking masking, class T>
FASTNN_INLINE Vec<T> with_mask(const AttentionTile<T>& t, Vec<T> x, int64_t r, int64_t j, int n) {
  const int64_t at = r * t.mask_stride + j;
  if constexpr (masking == Masking::kAdded) {
    return x + load_n(static_cast<const T*>(t.mask) + at, n);
  } else if constexpr (masking == Masking::kBool) {
    const auto seen = load_bools<T>(static_cast<const uint8_t*>(t.mask) + at, n);
    return select(seen, x, minus_infinity<Vec<T>>());
  }
  return x;
}
// scale * product + mask of the same columns.
template <Masking masking, class T>
FASTNN_INLINE Vec<T> score(const AttentionTile<T>& t, const T* row, int64_t r, int64_t j, int n) {
  return with_mask<masking>(t, load_n(row + j, n) * Vec<T>(t.scale), r, j, n);
}

// Calls f.operator()<masking>() for the mask that the tile has.
template <class T, class F>
FASTNN_INLINE void with_masking(const AttentionTile<T>& t, const F& f) {
  if (t.mask == nullptr) {
    f.template operator()<Masking::kNone>();
  } else if (t.mask_is_bool) {
    f.template operator()<Masking::kBool>();
  } else {
    f.template operator()<Masking::kAdded>();
  }
}

template <class T>
FASTNN_INLINE int64_t seen_columns(const AttentionTile<T>& t, int64_t r) {
  const int64_t seen = t.visible + r * t.visible_step;
  return seen < 0 ? 0 : seen < t.columns ? seen : t.columns;
}

template <class T>
FASTNN_INLINE void clear(T* p, int64_t n) {
  for_each_vec<Vec<T>>(n, [&](int64_t i, int lanes) { store_n(p + i, Vec<T>(T(0)), lanes); });
}

// f(j, z, n) over the first `seen` columns of row r, z being 0 where an element is dropped and else `keep`.
template <class T, class F>
FASTNN_INLINE void for_each_factor(const AttentionTile<T>& t, int64_t r, int64_t seen, const F& f) {
  using V = Vec<T>;
  const V keep(t.keep);
  const auto each = [&](int64_t i, I32 drop, int count) __attribute__((always_inline)) {
    for_each_piece<V>(drop, count, [&](int at, auto piece, int lanes) __attribute__((always_inline)) {
      const auto dropped = __builtin_convertvector(piece, typename V::IntRaw);
      f(i + at, V::from_bits(keep.bits() & ~dropped), lanes);
    });
  };
  for_each_decision(t.decision + r * t.decision_stride, seen, t.stream, t.threshold, each);
}

// delta = sum(y * dy) of each row.
template <class T>
void delta(int64_t rows, const T* y, int64_t y_row, const T* dy, int64_t dy_row, int64_t features, T* out) {
  using V = Vec<T>;
  for (int64_t r = 0; r < rows; ++r) {
    V total(T(0));
    for_each_vec<V>(features, [&](int64_t e, int n) {
      total = fma(load_n(y + r * y_row + e, n), load_n(dy + r * dy_row + e, n), total);
    });
    out[r] = sum_of_lanes(total)[0];
  }
}

// Scores become z p, slopes the gradient of the product q k^T; see AttentionOps.
template <class T>
void backward(const AttentionTile<T>& t, T* scores, T* slopes, const T* lse, const T* deltas) {
  using V = Vec<T>;
  const V scale(t.scale);
  with_masking(t, [&]<Masking masking>() {
    for (int64_t r = 0; r < t.rows; ++r) {
      T* row = scores + r * t.stride;
      T* slope = slopes + r * t.stride;
      const int64_t seen = seen_columns(t, r);
      const V base(lse[r]), delta(deltas[r]);
      const auto gradient = [&](int64_t j, V z, int n) __attribute__((always_inline)) {
        const V p = exp_or_zero(score<masking>(t, row, r, j, n) - base);
        store_n(row + j, p * z, n);
        store_n(slope + j, p * (load_n(slope + j, n) * z - delta) * scale, n);
      };
      if (t.drops) {
        for_each_factor(t, r, seen, gradient);
      } else {
        for_each_vec<V>(seen, [&](int64_t j, int n) { gradient(j, V(T(1)), n); });
      }
      clear(row + seen, t.columns - seen);
      clear(slope + seen, t.columns - seen);
    }
  });
}

}  // namespace
