// A head whose keys are few, from scores to y while a handful of its rows is in L1: no product is called for
// and no tile of scores is written and read again in L2, which costs short sequences half of their time.
//
// Keys are transposed once. Then, R rows of queries at a time: their scores, two registers of keys wide, with
// scale, mask and the maximum on the way out; exponentials and sums; y, two registers of features wide,
// divided on the way out. Sums run over features and keys in order, so R does not show in the bits.
#pragma once
#include "cpu/kernels/attention_tile.h"
#include "cpu/simd/math.h"
#include "cpu/simd/transpose.h"

namespace {

using fastnn::cpu::AttentionHead;

// R x 2 sums, two registers of b and one broadcast: of 32 registers, or 16.
#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 12;
#else
constexpr int kRowsAtOnce = 4;
#endif
static_assert(kRowsAtOnce <= fastnn::cpu::kHeadRows && kVecBytes / 4 <= fastnn::cpu::kHeadPadding);

// sum[r][v] = a[r, :] b[:, columns of v] over k steps; of b's last register, `lanes` are there.
template <int R, int NV, bool kMasked, class T>
FASTNN_INLINE void multiply(const T* a, int64_t a_row, const T* b, int64_t b_row, int64_t k, int lanes,
                            Vec<T> (&sum)[R][NV]) {
  using V = Vec<T>;
  // Rows by threes: one pointer, one and two strides on, as x86 forms addresses.
  constexpr int kGroups = (R + 2) / 3;
  const T* rows[kGroups];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) rows[g] = a + 3 * g * a_row;
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
    for (int g = 0; g < kGroups; ++g) ++rows[g];
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

// keys[e, j] = k[j, e], 0 beyond the last key.
template <class T>
FASTNN_INLINE void transpose_keys(const AttentionHead<T>& h) {
  using V = Vec<T>;
  for (int64_t j = 0; j < h.padded; j += V::N) {
    const int64_t left = h.tile.columns - j;
    for_each_vec<V>(h.E, [&](int64_t e, int n) {
      V square[V::N];
#pragma GCC unroll 16
      for (int i = 0; i < V::N; ++i) square[i] = i < left ? load_n(h.k + (j + i) * h.k_row + e, n) : V(T(0));
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < V::N; ++i)
        if (i < n) store(h.keys + (e + i) * h.padded + j, square[i]);
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
    multiply<R, NV, false>(h.q + first * h.q_row, h.q_row, h.keys + j, h.padded, h.E, V::N, sum);
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
    multiply<R, NV, kMasked>(h.scores, h.padded, h.v + d, h.v_row, most, lanes, sum);
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
  transpose_keys(h);
  with_masking(h.tile, [&]<Masking masking>() {
    int64_t r = 0;
    for (; r + kRowsAtOnce <= h.tile.rows; r += kRowsAtOnce) head_rows<kRowsAtOnce, masking>(h, r);
    if constexpr (kRowsAtOnce > 4)
      for (; r + 4 <= h.tile.rows; r += 4) head_rows<4, masking>(h, r);
    for (; r < h.tile.rows; ++r) head_rows<1, masking>(h, r);
  });
}

}  // namespace
