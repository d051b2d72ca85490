// The softmax of attention, tile by tile ("online": Milakov, Gimelshein, arXiv 1805.02867), and its gradient
// (Dao et al., FlashAttention, arXiv 2205.14135).
//
// Three sweeps over a row of a tile, which the matrix product has just left in cache: maximum, exponential
// and sum, dropout; scale and mask are applied twice rather than stored. Backward is one sweep, since it
// knows the row's lse. Special values as in softmax.cpp: a NaN makes the sum NaN.
#include "cpu/kernels/attention.h"

#include "cpu/kernels/attention_head.h"
#include "cpu/kernels/attention_tile.h"
#include "cpu/simd/math.h"

namespace {

using fastnn::cpu::AttentionOps;

template <Masking masking, class T>
void softmax_rows(const AttentionTile<T>& t, T* scores, T* peaks, T* sums, T* y, int64_t y_row,
                  int64_t features, bool first) {
  using V = Vec<T>;
  const T lowest = -static_cast<T>(__builtin_inf());
  for (int64_t r = 0; r < t.rows; ++r) {
    T* row = scores + r * t.stride;
    const int64_t seen = seen_columns(t, r);
    V best = minus_infinity<V>();
    for_each_vec<V>(seen, [&](int64_t j, int n) {
      best = max(best, lanes_or_lowest(score<masking>(t, row, r, j, n), n));
    });
    const T before = first ? lowest : peaks[r];
    const V peak = max(V(before), max_of_lanes(best));
    // Where no key has been seen yet: exp(-inf - 0) = 0.
    const V base = select(peak == minus_infinity<V>(), V(T(0)), peak);
    V total(T(0));
    for_each_vec<V>(seen, [&](int64_t j, int n) {
      const V e = exp_or_zero(lanes_or_lowest(score<masking>(t, row, r, j, n), n) - base);
      total += e;
      store_n(row + j, e, n);
    });
    clear(row + seen, t.columns - seen);
    if (t.drops) {
      for_each_factor(t, r, seen, [&](int64_t j, V z, int n) __attribute__((always_inline)) {
        store_n(row + j, load_n(row + j, n) * z, n);
      });
    }
    T sum = sum_of_lanes(total)[0];
    if (!first && seen > 0) {
      const V shrink = exp(V(before) - base);
      sum += sums[r] * shrink[0];
      if (shrink[0] != 1) {
        T* out = y + r * y_row;
        for_each_vec<V>(features,
                        [&](int64_t e, int n) { store_n(out + e, load_n(out + e, n) * shrink, n); });
      }
    } else if (!first) {
      sum = sums[r];
    }
    peaks[r] = peak[0];
    sums[r] = sum;
  }
}

template <class T>
void softmax(const AttentionTile<T>& t, T* scores, T* peak, T* sum, T* y, int64_t y_row, int64_t features,
             bool first) {
  with_masking(
      t, [&]<Masking masking>() { softmax_rows<masking>(t, scores, peak, sum, y, y_row, features, first); });
}

template <class T>
void finish(int64_t rows, const T* peak, const T* sum, T* y, int64_t y_row, int64_t features, T* lse) {
  using V = Vec<T>;
  for (int64_t r = 0; r < rows; ++r) {
    T* out = y + r * y_row;
    const bool blind = sum[r] == 0;  // no key seen
    const V inverse(blind ? T(0) : T(1) / sum[r]);
    for_each_vec<V>(features, [&](int64_t e, int n) { store_n(out + e, load_n(out + e, n) * inverse, n); });
    lse[r] = blind ? static_cast<T>(__builtin_inf()) : peak[r] + log(V(sum[r]))[0];
  }
}

template <class T>
constexpr AttentionOps<T> kOps = {head<T>, head_backward<T>, softmax<T>, finish<T>, delta<T>, backward<T>};

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const AttentionKernels attention;
const AttentionKernels attention = {kOps<float>, kOps<double>};
}  // namespace fastnn::cpu::FASTNN_ISA
