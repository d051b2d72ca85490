// Softmax: y = exp(x - max x) / sum exp(x - max x); log-softmax: y = x - max x - log(sum); softmin: of -x.
// Backward: dx = y (dy - sum dy y), or dx = dy - exp(y) sum dy.
//
// Three passes over a row or strip that stays in cache; the exponentials of the second wait in scratch, in
// the compute type, so that 16-bit outputs are rounded once. A NaN need not survive the maximum: its
// exponential makes the sum NaN, and so every y, as torch does.
#include "cpu/kernels/softmax.h"

#include "cpu/simd/lanes.h"
#include "cpu/simd/math.h"

namespace {

using namespace fastnn;

constexpr int64_t kSumBlock = 2048;

// f(f(start, ...), i, lanes) over a row: four chains side by side, because each step waits for the one
// before.
template <class V, class F, class Join>
FASTNN_INLINE V fold(int64_t n, V start, const F& f, const Join& join) {
  V part[4] = {start, start, start, start};
  int64_t i = 0;
  for (; i + 4 * V::N <= n; i += 4 * V::N)
    for (int k = 0; k < 4; ++k) part[k] = f(part[k], i + k * V::N, V::N);
  for_each_vec<V>(n - i, [&](int64_t j, int lanes) { part[0] = f(part[0], i + j, lanes); });
  return join(join(part[0], part[1]), join(part[2], part[3]));
}

// Rows of at most K registers: read once, kept in registers, written once.
template <class T, int K>
void short_rows(const SoftmaxParams& p, int64_t begin, int64_t end) {
  using V = Vec<Compute<T>>;
  const int last = static_cast<int>(p.length - (K - 1) * V::N);
  const auto lanes = [&](int k) { return k + 1 < K ? V::N : last; };
  const V sign(p.negate ? -1 : 1);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.length;
    T* y = static_cast<T*>(p.y) + row * p.length;
    V v[K], e[K];
    for (int k = 0; k < K; ++k) v[k] = lanes_or_lowest(load_n(x + k * V::N, lanes(k)) * sign, lanes(k));
    V peak = v[0];
    for (int k = 1; k < K; ++k) peak = max(peak, v[k]);
    peak = max_of_lanes(peak);
    V sum(0);
    for (int k = 0; k < K; ++k) v[k] = v[k] - peak, e[k] = exp(v[k]), sum += e[k];
    sum = sum_of_lanes(sum);
    if (p.log) {
      const V logarithm = log(sum);
      for (int k = 0; k < K; ++k) store_n(y + k * V::N, v[k] - logarithm, lanes(k));
    } else {
      const V inverse = V(1) / sum;
      for (int k = 0; k < K; ++k) store_n(y + k * V::N, e[k] * inverse, lanes(k));
    }
  }
}

void rows(const SoftmaxParams& p, int64_t begin, int64_t end, void* scratch) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    using V = Vec<C>;
    const int64_t length = p.length;
    if (length <= V::N) return short_rows<T, 1>(p, begin, end);
    if (length <= 2 * V::N) return short_rows<T, 2>(p, begin, end);
    if (length <= 3 * V::N) return short_rows<T, 3>(p, begin, end);
    if (length <= 4 * V::N) return short_rows<T, 4>(p, begin, end);
    const V sign(C(p.negate ? -1 : 1));
    C* exps = static_cast<C*>(scratch);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(p.x) + row * length;
      T* y = static_cast<T*>(p.y) + row * length;
      const V peak = max_of_lanes(fold(
          length, minus_infinity<V>(),
          [&](V best, int64_t i, int n) { return max(best, lanes_or_lowest(load_n(x + i, n) * sign, n)); },
          [](V a, V b) { return max(a, b); }));
      V total(C(0));
      // Blocks of the row are added up apart: a long chain of float additions would lose digits.
      for (int64_t block = 0; block < length; block += kSumBlock) {
        V partial(C(0));
        for_each_vec<V>(length - block < kSumBlock ? length - block : kSumBlock, [&](int64_t i, int n) {
          const V e = exp(lanes_or_lowest(load_n(x + block + i, n) * sign, n) - peak);
          partial += e;
          if (!p.log) store_n(exps + block + i, e, n);
        });
        total += partial;
      }
      const V sum = sum_of_lanes(total);
      if (p.log) {
        const V logarithm = log(sum);
        for_each_vec<V>(
            length, [&](int64_t i, int n) { store_n(y + i, load_n(x + i, n) * sign - peak - logarithm, n); });
      } else {
        const V inverse = V(C(1)) / sum;
        for_each_vec<V>(length, [&](int64_t i, int n) { store_n(y + i, load_n(exps + i, n) * inverse, n); });
      }
    }
  });
}

void rows_backward(const SoftmaxBackwardParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    using V = Vec<C>;
    const int64_t length = p.length;
    const V sign(C(p.negate ? -1 : 1));
    for (int64_t row = begin; row < end; ++row) {
      const T* dy = static_cast<const T*>(p.dy) + row * length;
      const T* y = static_cast<const T*>(p.y) + row * length;
      T* dx = static_cast<T*>(p.dx) + row * length;
      const auto add = [](V a, V b) { return a + b; };
      if (p.log) {  // lanes beyond the row are read as 0
        const V sum = sum_of_lanes(
            fold(length, V(C(0)), [&](V total, int64_t i, int n) { return total + load_n(dy + i, n); }, add));
        for_each_vec<V>(length, [&](int64_t i, int n) {
          store_n(dx + i, (load_n(dy + i, n) - exp(load_n(y + i, n)) * sum) * sign, n);
        });
      } else {
        const V sum = sum_of_lanes(fold(
            length, V(C(0)),
            [&](V total, int64_t i, int n) { return fma(load_n(dy + i, n), load_n(y + i, n), total); }, add));
        for_each_vec<V>(length, [&](int64_t i, int n) {
          store_n(dx + i, load_n(y + i, n) * (load_n(dy + i, n) - sum) * sign, n);
        });
      }
    }
  });
}

// K registers side by side, the last one with n lanes; consecutive elements of a column lie `inner` apart.
template <class T, int K>
void strip(const SoftmaxParams& p, const T* x, T* y, int n, Compute<T>* exps) {
  using C = Compute<T>;
  using V = Vec<C>;
  const auto lanes = [&](int k) { return k + 1 < K ? V::N : n; };
  const V sign(C(p.negate ? -1 : 1));
  V peak[K], sum[K];
  for (int k = 0; k < K; ++k) peak[k] = minus_infinity<V>(), sum[k] = V(C(0));
  for (int64_t l = 0; l < p.length; ++l)
    for (int k = 0; k < K; ++k) peak[k] = max(peak[k], load_n(x + l * p.inner + k * V::N, lanes(k)) * sign);
  for (int64_t l = 0; l < p.length; ++l)
    for (int k = 0; k < K; ++k) {
      const V e = exp(load_n(x + l * p.inner + k * V::N, lanes(k)) * sign - peak[k]);
      sum[k] += e;
      store(exps + (l * K + k) * V::N, e);
    }
  for (int k = 0; k < K; ++k) sum[k] = p.log ? log(sum[k]) : V(C(1)) / sum[k];
  for (int64_t l = 0; l < p.length; ++l)
    for (int k = 0; k < K; ++k) {
      const int64_t at = l * p.inner + k * V::N;
      const V result = p.log ? load_n(x + at, lanes(k)) * sign - peak[k] - sum[k]
                             : load(exps + (l * K + k) * V::N) * sum[k];
      store_n(y + at, result, lanes(k));
    }
}

template <class T, int K>
void strip_backward(const SoftmaxBackwardParams& p, const T* dy, const T* y, T* dx, int n) {
  using C = Compute<T>;
  using V = Vec<C>;
  const auto lanes = [&](int k) { return k + 1 < K ? V::N : n; };
  const V sign(C(p.negate ? -1 : 1)), one(C(1));
  V sum[K];
  for (int k = 0; k < K; ++k) sum[k] = V(C(0));
  for (int64_t l = 0; l < p.length; ++l)
    for (int k = 0; k < K; ++k) {
      const int64_t at = l * p.inner + k * V::N;
      sum[k] = fma(load_n(dy + at, lanes(k)), p.log ? one : load_n(y + at, lanes(k)), sum[k]);
    }
  for (int64_t l = 0; l < p.length; ++l)
    for (int k = 0; k < K; ++k) {
      const int64_t at = l * p.inner + k * V::N;
      const V g = load_n(dy + at, lanes(k)), v = load_n(y + at, lanes(k));
      store_n(dx + at, (p.log ? g - exp(v) * sum[k] : v * (g - sum[k])) * sign, lanes(k));
    }
}

// f(offset, n, K) over columns [begin, end): four full registers at a time, then one.
template <class V, class F>
FASTNN_INLINE void each_strip(int64_t begin, int64_t end, const F& f) {
  for (; begin + 4 * V::N <= end; begin += 4 * V::N) f.template operator()<4>(begin, V::N);
  for (; begin < end; begin += V::N) {
    f.template operator()<1>(begin, end - begin < V::N ? static_cast<int>(end - begin) : V::N);
  }
}

void columns(const SoftmaxParams& p, int64_t o, int64_t begin, int64_t end, void* scratch) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t base = o * p.length * p.inner;
    each_strip<Vec<Compute<T>>>(begin, end, [&]<int K>(int64_t j, int n) {
      strip<T, K>(p, static_cast<const T*>(p.x) + base + j, static_cast<T*>(p.y) + base + j, n,
                  static_cast<Compute<T>*>(scratch));
    });
  });
}

void columns_backward(const SoftmaxBackwardParams& p, int64_t o, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t base = o * p.length * p.inner;
    each_strip<Vec<Compute<T>>>(begin, end, [&]<int K>(int64_t j, int n) {
      const int64_t at = base + j;
      strip_backward<T, K>(p, static_cast<const T*>(p.dy) + at, static_cast<const T*>(p.y) + at,
                           static_cast<T*>(p.dx) + at, n);
    });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const SoftmaxKernels softmax;
const SoftmaxKernels softmax = {rows, rows_backward, columns, columns_backward};
}  // namespace fastnn::cpu::FASTNN_ISA
