// A head whose keys are few, from scores to y while a handful of its rows is in L1: no product is called for
// and no tile of scores is written and read again in L2, which costs short sequences half of their time.
//
// Keys are transposed once. Then, R rows of queries at a time: their scores, two registers of keys wide, with
// scale, mask and the maximum on the way out; exponentials and sums; y, two registers of features wide,
// divided on the way out. Backward likewise, see head_backward(). Sums run over features, keys and queries in
// order, so R does not show in the bits.
#pragma once
#include "cpu/kernels/attention_tile.h"
#include "cpu/simd/math.h"
#include "cpu/simd/transpose.h"

namespace {

using fastnn::cpu::AttentionHead;
using fastnn::cpu::AttentionHeadBackward;

// R x 2 sums, two registers of b and one broadcast: of 32 registers, or 16.
#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 12;
#else
constexpr int kRowsAtOnce = 4;
#endif
static_assert(kRowsAtOnce <= fastnn::cpu::kHeadRows && kVecBytes / 4 <= fastnn::cpu::kHeadPadding);

// A matrix with both strides.
template <class T>
struct Strided {
  const T* data;
  int64_t row, column;
};

// sum[r][v] = a[r, :] b[:, columns of v] over k steps; of b's last register, `lanes` are there.
template <int R, int NV, bool kMasked, class T>
FASTNN_INLINE void multiply(const Strided<T>& a, const T* b, int64_t b_row, int64_t k, int lanes,
                            Vec<T> (&sum)[R][NV]) {
  using V = Vec<T>;
  // Rows by threes: one pointer, one and two strides on, as x86 forms addresses.
  constexpr int kGroups = (R + 2) / 3;
  const T* rows[kGroups];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) rows[g] = a.data + 3 * g * a.row;
  const int64_t a_row = a.row, a_column = a.column;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) sum[r][v] = V(T(0));
  for (int64_t p = 0; p < k; ++p, b += b_row) {
    V bv[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v)
      bv[v] = kMasked && v + 1 == NV ? load(b + v * V::N, lanes) : load(b + v * V::N);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V av(rows[r / 3][r % 3 * a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sum[r][v] = fma(av, bv[v], sum[r][v]);
    }
#pragma GCC unroll 8
    for (int g = 0; g < kGroups; ++g) rows[g] += a_column;
  }
}

// f.operator()<NV, kMasked>(column, lanes) over n columns, two registers at a time, then one, the last one
// cut.
template <class V, class F>
FASTNN_INLINE void for_each_pair(int64_t n, const F& f) {
  int64_t j = 0;
  for (; j + 2 * V::N <= n; j += 2 * V::N) f.template operator()<2, false>(j, V::N);
  if (j + V::N < n) {
    f.template operator()<2, true>(j, static_cast<int>(n - j - V::N));
  } else if (j + V::N == n) {
    f.template operator()<1, false>(j, V::N);
  } else if (j < n) {
    f.template operator()<1, true>(j, static_cast<int>(n - j));
  }
}

// f.operator()<R>(first) over n rows, as many at once as registers hold, then four, then one.
template <class F>
FASTNN_INLINE void for_each_rows(int64_t n, const F& f) {
  int64_t r = 0;
  for (; r + kRowsAtOnce <= n; r += kRowsAtOnce) f.template operator()<kRowsAtOnce>(r);
  if constexpr (kRowsAtOnce > 4)
    for (; r + 4 <= n; r += 4) f.template operator()<4>(r);
  for (; r < n; ++r) f.template operator()<1>(r);
}

// out[e, j] = rows[j, e], 0 beyond the last row; `padded` is a multiple of any register.
template <class T>
FASTNN_INLINE void transpose_rows(const T* rows, int64_t stride, int64_t count, int64_t E, T* out,
                                  int64_t padded) {
  using V = Vec<T>;
  for (int64_t j = 0; j < padded; j += V::N) {
    const int64_t left = count - j;
    for_each_vec<V>(E, [&](int64_t e, int n) {
      V square[V::N];
#pragma GCC unroll 16
      for (int i = 0; i < V::N; ++i) square[i] = i < left ? load_n(rows + (j + i) * stride + e, n) : V(T(0));
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < V::N; ++i)
        if (i < n) store(out + (e + i) * padded + j, square[i]);
    });
  }
}

// Rows [first, first + R) from scores to y.
template <int R, Masking masking, class T>
void head_rows(const AttentionHead<T>& h, int64_t first) {
  using V = Vec<T>;
  const AttentionTile<T>& t = h.tile;
  const int64_t most = seen_columns(t, first + R - 1);  // the last row sees most
  V best[R];
  for (int r = 0; r < R; ++r) best[r] = minus_infinity<V>();
  const V scale(t.scale);
  for_each_pair<V>(most, [&]<int NV, bool kMasked>(int64_t j, int lanes) __attribute__((always_inline)) {
    V sum[R][NV];
    multiply<R, NV, false>({h.q + first * h.q_row, h.q_row, 1}, h.keys + j, h.padded, h.E, V::N, sum);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const int64_t seen = t.visible_step == 0 ? most : seen_columns(t, first + r);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const int64_t at = j + v * V::N;
        V x = with_mask<masking>(t, sum[r][v] * scale, first + r, at, kMasked && v + 1 == NV ? lanes : V::N);
        if (at + V::N > seen) x = lanes_or_lowest(x, at < seen ? static_cast<int>(seen - at) : 0);
        best[r] = max(best[r], x);
        store(h.scores + r * h.padded + at, x);
      }
    }
  });

  V inverse[R];
  T sums[fastnn::cpu::kHeadPadding] = {}, peaks[fastnn::cpu::kHeadPadding] = {};
  for (int r = 0; r < R; ++r) {
    T* row = h.scores + r * h.padded;
    const V peak = max_of_lanes(best[r]);
    const V base = select(peak == minus_infinity<V>(), V(T(0)), peak);  // no key seen: exp(-inf - 0) = 0
    V total(T(0));
    for (int64_t j = 0; j < most; j += V::N) {
      const V e = exp_or_zero(load(row + j) - base);
      total += e;
      store(row + j, e);
    }
    if (t.drops) {
      for_each_factor(t, first + r, most, [&](int64_t j, V z, int n) __attribute__((always_inline)) {
        store_n(row + j, load_n(row + j, n) * z, n);
      });
    }
    const V sum = sum_of_lanes(total);
    sums[r] = sum[0], peaks[r] = peak[0];
    inverse[r] = select(sum == V(T(0)), V(T(0)), V(T(1)) / sum);
  }
  for (int r = 0; r < R; r += V::N) {
    const V sum = load(sums + r), blind(static_cast<T>(__builtin_inf()));
    store_n(h.lse + first + r, select(sum == V(T(0)), blind, load(peaks + r) + log(sum)),
            R - r < V::N ? R - r : V::N);
  }

  for_each_pair<V>(h.EV, [&]<int NV, bool kMasked>(int64_t d, int lanes) __attribute__((always_inline)) {
    V sum[R][NV];
    multiply<R, NV, kMasked>({h.scores, h.padded, 1}, h.v + d, h.v_row, most, lanes, sum);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v)
        store_n(h.y + (first + r) * h.y_row + d + v * V::N, sum[r][v] * inverse[r],
                kMasked && v + 1 == NV ? lanes : V::N);
  });
}

template <class T>
void head(const AttentionHead<T>& h) {
  transpose_rows(h.k, h.k_row, h.tile.columns, h.E, h.keys, h.padded);
  with_masking(h.tile, [&]<Masking masking>() {
    for_each_rows(h.tile.rows, [&]<int R>(int64_t first) { head_rows<R, masking>(h, first); });
  });
}

// --- backward --------------------------------------------------------------------------------------------

// c [rows, n] = a b over k steps, or added to c. kPadded: b may be read up to a whole register.
template <int R, bool kPadded, class T>
FASTNN_INLINE void product_rows(const Strided<T>& a, const T* b, int64_t b_row, int64_t k, int64_t n, T* c,
                                int64_t c_row, bool add) {
  using V = Vec<T>;
  for_each_pair<V>(n, [&]<int NV, bool kMasked>(int64_t j, int lanes) __attribute__((always_inline)) {
    V sum[R][NV];
    multiply<R, NV, kMasked && !kPadded>(a, b + j, b_row, k, lanes, sum);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        T* out = c + r * c_row + j + v * V::N;
        const int count = kMasked && v + 1 == NV && !kPadded ? lanes : V::N;
        store_n(out, add ? sum[r][v] + load_n(out, count) : sum[r][v], count);
      }
  });
}

// The tile from row `first` on.
template <class T>
FASTNN_INLINE AttentionTile<T> rows_from(AttentionTile<T> t, int64_t first, int64_t rows) {
  if (t.mask) {
    const int64_t size = t.mask_is_bool ? 1 : int64_t{sizeof(T)};
    t.mask = static_cast<const char*>(t.mask) + first * t.mask_stride * size;
  }
  t.decision += first * t.decision_stride;
  t.visible += first * t.visible_step;
  t.rows = rows;
  return t;
}

// Rows: scores and slopes, then the gradient of the scores and dq, while they are in L1. Then dk and dv, rows
// of keys against all queries.
template <class T>
void head_backward(const AttentionHeadBackward<T>& b) {
  const AttentionHead<T>& h = b.head;
  AttentionTile<T> t = h.tile;
  t.stride = h.padded;
  transpose_rows(h.k, h.k_row, t.columns, h.E, h.keys, h.padded);
  transpose_rows(h.v, h.v_row, t.columns, h.EV, b.values, h.padded);
  for_each_rows(t.rows, [&]<int R>(int64_t first) {
    const AttentionTile<T> rows = rows_from(t, first, R);
    const int64_t most = seen_columns(rows, R - 1);
    T *scores = h.scores + first * h.padded, *slopes = b.slopes + first * h.padded, deltas[R];
    const T* dy = b.dy + first * b.dy_row;
    product_rows<R, true>({h.q + first * h.q_row, h.q_row, 1}, h.keys, h.padded, h.E, most, scores, h.padded,
                          false);
    product_rows<R, true>({dy, b.dy_row, 1}, b.values, h.padded, h.EV, most, slopes, h.padded, false);
    delta(R, h.y + first * h.y_row, h.y_row, dy, b.dy_row, h.EV, deltas);
    backward(rows, scores, slopes, h.lse + first, deltas);
    if (b.dq == nullptr) return;
    product_rows<R, false>({slopes, h.padded, 1}, h.k, h.k_row, most, h.E, b.dq + first * b.dq_row, b.dq_row,
                           b.add_queries);
  });
  for_each_rows(t.columns, [&]<int R>(int64_t first) {
    // Queries before this one see none of these keys.
    const int64_t blind = t.visible_step == 0 ? 0 : first + 1 - t.visible, q = blind > 0 ? blind : 0;
    if (q >= t.rows) return;
    const int64_t at = q * h.padded + first;
    if (b.dv)
      product_rows<R, false>({h.scores + at, 1, h.padded}, b.dy + q * b.dy_row, b.dy_row, t.rows - q, h.EV,
                             b.dv + first * b.dv_row, b.dv_row, b.add_keys);
    if (b.dk)
      product_rows<R, false>({b.slopes + at, 1, h.padded}, h.q + q * h.q_row, h.q_row, t.rows - q, h.E,
                             b.dk + first * b.dk_row, b.dk_row, b.add_keys);
  });
}

}  // namespace
