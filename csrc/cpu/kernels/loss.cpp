// Cross-entropy of the class t with weight w: loss = w (peak - x_t + log(sum)), sum = sum exp(x - peak).
// Backward: dx_c = w dy (exp(x_c - peak) / sum - [c = t]).
//
// Two passes over a row that stays in cache, and no log-probabilities in memory: two numbers per position are
// kept, which the backward needs to find them again in one pass. Two and not their logarithm in one, because
// peak + log(sum) would round the digits of log(sum) away where the logits are large. An ignored position has
// loss and gradient 0 whatever its logits are.
#include "cpu/kernels/loss.h"

#include "cpu/kernels/loss_targets.h"
#include "cpu/simd/math.h"

namespace {

using namespace fastnn;

constexpr int64_t kSumBlock = 2048;  // of a row, added up apart: a long chain of additions would lose digits

template <class C>
FASTNN_INLINE C log_of(C x) {
  return log(Vec<C>(x))[0];
}

void rows(const CrossEntropyParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    using V = Vec<C>;
    const Targets<C> target(p.target);
    C *peaks = static_cast<C*>(p.peak), *sums = static_cast<C*>(p.sum), *loss = static_cast<C*>(p.loss);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(p.x) + row * p.C;
      const V peak = peak_of_row(x, p.C);
      V total(C(0));
      for (int64_t block = 0; block < p.C; block += kSumBlock) {
        V partial(C(0));
        for_each_vec<V>(p.C - block < kSumBlock ? p.C - block : kSumBlock, [&](int64_t j, int n) {
          partial += exp(lanes_or_lowest(load_n(x + block + j, n), n) - peak);
        });
        total += partial;
      }
      peaks[row] = peak[0], sums[row] = sum_of_lanes(total)[0];
      loss[row] = target.counts(row) ? target.weight(row) *
                                           (peaks[row] - to_compute(x[target.index[row]]) + log_of(sums[row]))
                                     : C(0);
    }
  });
}

void rows_backward(const CrossEntropyBackwardParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    using V = Vec<C>;
    const Slopes<C> slopes(p);
    const C *peaks = static_cast<const C*>(p.peak), *sums = static_cast<const C*>(p.sum);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(p.x) + row * p.C;
      T* dx = static_cast<T*>(p.dx) + row * p.C;
      if (!slopes.target.counts(row)) {
        const V none(sums[row] * C(0));  // NaN where the row has no softmax: torch's product with zero
        for_each_vec<V>(p.C, [&](int64_t i, int n) { store_n(dx + i, none, n); });
        continue;
      }
      const C slope = slopes(row);
      const V peak(peaks[row]), factor(slope / sums[row]);
      for_each_vec<V>(p.C,
                      [&](int64_t i, int n) { store_n(dx + i, exp(load_n(x + i, n) - peak) * factor, n); });
      const int64_t t = slopes.target.index[row];
      dx[t] = from_compute<T>((exp(V(to_compute(x[t])) - peak) * factor - V(slope))[0]);
    }
  });
}

// One register of columns, n lanes of it; consecutive classes lie `inner` apart.
template <class T>
void strip(const CrossEntropyParams& p, int64_t first, const T* x, int n) {
  using C = Compute<T>;
  using V = Vec<C>;
  const Targets<C> target(p.target);
  V peak = minus_infinity<V>(), sum(C(0));
  for (int64_t c = 0; c < p.C; ++c) peak = max(peak, load_n(x + c * p.inner, n));
  for (int64_t c = 0; c < p.C; ++c) sum += exp(load_n(x + c * p.inner, n) - peak);
  store_n(static_cast<C*>(p.peak) + first, peak, n);
  store_n(static_cast<C*>(p.sum) + first, sum, n);
  const V base = peak, logarithm = log(sum);
  C* loss = static_cast<C*>(p.loss) + first;
  for (int j = 0; j < n; ++j) {
    loss[j] = target.counts(first + j)
                  ? target.weight(first + j) *
                        (base[j] - to_compute(x[target.index[first + j] * p.inner + j]) + logarithm[j])
                  : C(0);
  }
}

template <class T>
void strip_backward(const CrossEntropyBackwardParams& p, int64_t first, const T* x, T* dx, int n) {
  using C = Compute<T>;
  using V = Vec<C>;
  const Slopes<C> slopes(p);
  V slope(C(0)), which(C(-1));
  for (int j = 0; j < n; ++j) {
    slope.v[j] = slopes(first + j);
    if (slopes.target.counts(first + j)) which.v[j] = static_cast<C>(slopes.target.index[first + j]);
  }
  const V peak = load_n(static_cast<const C*>(p.peak) + first, n);
  const V sum = load_n(static_cast<const C*>(p.sum) + first, n), zero(C(0));
  const V factor = slope / sum, none = sum * zero;  // NaN where there is no softmax, as in rows_backward
  const auto ignored = which < zero;
  for (int64_t c = 0; c < p.C; ++c) {
    const V here = select(which == V(static_cast<C>(c)), slope, zero);
    const V g = exp(load_n(x + c * p.inner, n) - peak) * factor - here;
    store_n(dx + c * p.inner, select(ignored, none, g), n);
  }
}

void columns(const CrossEntropyParams& p, int64_t n, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const T* x = static_cast<const T*>(p.x) + n * p.C * p.inner;
    for_each_vec<Vec<Compute<T>>>(end - begin, [&](int64_t i, int lanes) {
      strip<T>(p, n * p.inner + begin + i, x + begin + i, lanes);
    });
  });
}

void columns_backward(const CrossEntropyBackwardParams& p, int64_t n, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t base = n * p.C * p.inner + begin;
    for_each_vec<Vec<Compute<T>>>(end - begin, [&](int64_t i, int lanes) {
      strip_backward<T>(p, n * p.inner + begin + i, static_cast<const T*>(p.x) + base + i,
                        static_cast<T*>(p.dx) + base + i, lanes);
    });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const LossKernels loss;
const LossKernels loss = {rows, rows_backward, columns, columns_backward};
}  // namespace fastnn::cpu::FASTNN_ISA
