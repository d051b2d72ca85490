// Inner loops of layer, RMS and group norm; see normalization.h for what each computes.
//
// Backward brings the rows of a tile into cache one by one: interleaved, they would mislead the prefetcher (a
// quarter of the speed of rows of 192). The second look takes kSide rows at once, which halves the traffic on
// the gradients of the parameters. The caller bounds what one lane adds up in float: pieces of rows for the
// sums, blocks of rows for the gradients of the parameters.
#include "cpu/kernels/normalization.h"

#include "cpu/simd/moments.h"
#include "cpu/simd/transpose.h"

namespace {

using fastnn::Compute;
using fastnn::cpu::NormalizationOps;
using fastnn::cpu::NormTile;
using fastnn::cpu::NormUnits;

constexpr int kSide = 2;  // rows of a tile whose gradients are taken at once

// The sum of the lanes, without a trip through memory.
template <class T>
FASTNN_INLINE T lanes_total(Vec<T> a) {
  Vec<T> one[1] = {a};
  return sum_lanes<Vec<T>::N / 2, 1>(one)[0];
}
template <class V>
FASTNN_INLINE double total(const Sums<V>& sums) {
  return lanes_total((sums.v[0] + sums.v[1]) + (sums.v[2] + sums.v[3]));
}

struct Moments {
  double mean, m2;
};

// In plain double arithmetic: where the sums in float overflowed or met a NaN or an infinity.
template <class T>
__attribute__((noinline)) Moments wide_moments(const T* x, int64_t length, bool rms) {
  Moments m = {0, 0};
  if (!rms) {
    for (int64_t i = 0; i < length; ++i) m.mean += to_compute(x[i]);
    m.mean /= static_cast<double>(length);
  }
  for (int64_t i = 0; i < length; ++i) {
    const double d = to_compute(x[i]) - m.mean;
    m.m2 += d * d;
  }
  return m;
}

// `inverse`: 1 / length. Sums of d = x - c and d * d for a guess c of the mean, that of the beginning: the
// mean is c + sum(d) / n and m2 is sum(d * d) - sum(d)^2 / n (Chan, Golub, LeVeque 1983). Where the guess is
// more than a standard deviation off, a second pass takes the mean that the first one found: no cancellation
// whatever the data's offset, since x - mean is exact where they are within a factor of two.
template <class T, bool kRms>
FASTNN_INLINE Moments moments_of(const T* x, int64_t length, double inverse) {
  using A = Compute<T>;
  using V = Vec<A>;
  A centre(0);
  if constexpr (!kRms) {
    const int64_t head = length < kSums * V::N ? length : kSums * V::N;
    V first(A(0));
    for_each_vec<V>(head,
                    [&](int64_t i, int n) __attribute__((always_inline)) { first += load_n(x + i, n); });
    centre = lanes_total(first) / static_cast<A>(head);
  }
  for (bool again = kRms;; again = true) {
    const V c(centre);
    Sums<V> rest, squares;
    for_each_unrolled<V>(length, [&](int64_t i, int n, int slot) __attribute__((always_inline)) {
      const V d = kRms ? load_n(x + i, n) : first_lanes(load_n(x + i, n) - c, n);
      if constexpr (!kRms) rest.v[slot] += d;
      squares.v[slot] = fma(d, d, squares.v[slot]);
    });
    const double sum = kRms ? 0 : total(rest), all = total(squares), lost = sum * sum * inverse;
    if (!(all - all == 0)) return wide_moments(x, length, kRms);
    if (again || 2 * lost <= all) return {centre + sum * inverse, all - lost < 0 ? 0 : all - lost};
    centre = static_cast<A>(centre + sum * inverse);
  }
}

template <class T>
void moments(const T* x, int64_t length, bool rms, double* mean, double* m2) {
  const double inverse = 1 / static_cast<double>(length);
  const Moments m = rms ? moments_of<T, true>(x, length, inverse) : moments_of<T, false>(x, length, inverse);
  *mean = m.mean;
  *m2 = m.m2;
}

template <class T, bool kWeight, bool kBias>
FASTNN_INLINE void normalize_row(const T* x, T* y, int64_t length, Compute<T> mean, Compute<T> rstd,
                                 Compute<T> lost, const Compute<T>* weight, const Compute<T>* bias) {
  using V = Vec<Compute<T>>;
  const V m(mean), r(rstd), rest(-lost);
  for_each_unrolled<V>(length, [&](int64_t i, int n, int) __attribute__((always_inline)) {
    V a = fma(load_n(x + i, n) - m, r, rest);
    if constexpr (kWeight && kBias) a = fma(a, load_n(weight + i, n), load_n(bias + i, n));
    if constexpr (kWeight && !kBias) a *= load_n(weight + i, n);
    if constexpr (kBias && !kWeight) a += load_n(bias + i, n);
    store_n(y + i, a, n);
  });
}

template <class T>
void normalize(const T* x, T* y, int64_t length, Compute<T> mean, Compute<T> rstd, Compute<T> lost,
               const Compute<T>* weight, const Compute<T>* bias) {
  if (weight && bias) return normalize_row<T, true, true>(x, y, length, mean, rstd, lost, weight, bias);
  if (weight) return normalize_row<T, true, false>(x, y, length, mean, rstd, lost, weight, bias);
  if (bias) return normalize_row<T, false, true>(x, y, length, mean, rstd, lost, weight, bias);
  normalize_row<T, false, false>(x, y, length, mean, rstd, lost, weight, bias);
}

// The `rows` channels of a group, `length` elements each: y = (x - mean) * scale + shift.
template <class T>
FASTNN_INLINE void normalize_channels(const T* x, T* y, int64_t rows, int64_t length, Compute<T> mean,
                                      Compute<T> rstd, Compute<T> lost, const Compute<T>* weight,
                                      const Compute<T>* bias) {
  using A = Compute<T>;
  using V = Vec<A>;
  const V m(mean);
  for (int64_t k = 0; k < rows; ++k) {
    const A w = weight ? weight[k] : A(1), b = bias ? bias[k] : A(0);
    const V a(rstd * w), c(lost == 0 ? b : b - lost * w);
    for_each_unrolled<V>(length, [&](int64_t i, int n, int) __attribute__((always_inline)) {
      const int64_t at = k * length + i;
      store_n(y + at, fma(load_n(x + at, n) - m, a, c), n);
    });
  }
}

// Statistics and y of one stretch after another; the processor overlaps the chains of several short ones.
template <class T, bool kRms>
void forward_of(const NormUnits<T>& p) {
  using A = Compute<T>;
  const int64_t parameters = p.length / p.inner;
  const double inverse = 1 / static_cast<double>(p.length);
  int64_t group = p.group;
  for (int64_t u = 0; u < p.units; ++u) {
    const T* x = p.x + u * p.length;
    T* y = p.y + u * p.length;
    const Moments m = moments_of<T, kRms>(x, p.length, inverse);
    const double var = m.m2 * inverse, r = 1 / __builtin_sqrt(var + p.eps);
    const A mean = static_cast<A>(m.mean), rstd = static_cast<A>(r);
    const double rounded = m.mean - static_cast<double>(mean);
    const A lost = static_cast<A>(rounded == rounded ? rounded * r : 0);
    if constexpr (!kRms) p.mean[u] = mean;
    p.rstd[u] = rstd;
    if (p.var != nullptr) p.var[u] = var;
    const A* weight = p.weight ? p.weight + group * parameters : nullptr;
    const A* bias = p.bias ? p.bias + group * parameters : nullptr;
    if (p.inner == 1) {
      normalize(x, y, p.length, mean, rstd, lost, weight, bias);
    } else {
      normalize_channels(x, y, parameters, p.inner, mean, rstd, lost, weight, bias);
    }
    if (++group == p.G) group = 0;
  }
}

template <class T>
void forward(const NormUnits<T>& p) {
  p.rms ? forward_of<T, true>(p) : forward_of<T, false>(p);
}

template <class T, bool kWeight>
void sums_of_rows(const NormTile<T>& t, double* sum, double* dot) {
  using V = Vec<Compute<T>>;
  for (int r = 0; r < t.rows; ++r) {
    const T *x = t.x + r * t.stride, *dy = t.dy + r * t.stride;
    const V m(t.mean[r]);
    Sums<V> s, d;
    for_each_unrolled<V>(t.length, [&](int64_t i, int n, int slot) __attribute__((always_inline)) {
      V g = load_n(dy + i, n);  // 0 in the lanes that are left over
      if constexpr (kWeight) g *= load_n(t.weight + i, n);
      s.v[slot] += g;
      d.v[slot] = fma(g, load_n(x + i, n) - m, d.v[slot]);
    });
    sum[r] = total(s);
    dot[r] = total(d);
  }
}

template <class T>
void sums(const NormTile<T>& t, double* sum, double* dot) {
  t.weight != nullptr ? sums_of_rows<T, true>(t, sum, dot) : sums_of_rows<T, false>(t, sum, dot);
}

// Rows [first, first + R) of the tile.
template <class T, int R, bool kWeight, bool kInput, bool kParameters>
FASTNN_INLINE void gradients_of_rows(const NormTile<T>& t, int first) {
  using A = Compute<T>;
  using V = Vec<A>;
  V m[R], a[R], b[R], k[R];
  for (int r = 0; r < R; ++r) {
    m[r] = V(t.mean[first + r]), a[r] = V(t.rstd[first + r]);
    b[r] = V(t.shift[first + r]), k[r] = V(t.slope[first + r]);
  }
  const int64_t begin = first * t.stride;
  for_each_vec<V>(t.length, [&](int64_t i, int n) __attribute__((always_inline)) {
    const V w = kWeight ? load_n(t.weight + i, n) : V(A(1));
    V dw(A(0)), db(A(0));
    for (int r = 0; r < R; ++r) {
      const int64_t at = begin + r * t.stride + i;
      const V d = load_n(t.x + at, n) - m[r], dy = load_n(t.dy + at, n);
      if constexpr (kParameters) dw = fma(dy, d * a[r], dw), db += dy;
      if constexpr (kInput) store_n(t.dx + at, ((kWeight ? dy * w : dy) - b[r] - d * k[r]) * a[r], n);
    }
    if constexpr (kParameters) {
      store_n(t.dweight + i, load_n(t.dweight + i, n) + dw, n);
      store_n(t.dbias + i, load_n(t.dbias + i, n) + db, n);
    }
  });
}

template <class T, bool kWeight, bool kInput, bool kParameters>
void gradients_with(const NormTile<T>& t) {
  int r = 0;
  for (; r + kSide <= t.rows; r += kSide) gradients_of_rows<T, kSide, kWeight, kInput, kParameters>(t, r);
  for (; r < t.rows; ++r) gradients_of_rows<T, 1, kWeight, kInput, kParameters>(t, r);
}

template <class T>
void gradients(const NormTile<T>& t) {
  const bool weight = t.weight != nullptr;
  if (t.dx == nullptr) return gradients_with<T, false, false, true>(t);
  if (t.dweight == nullptr) {
    return weight ? gradients_with<T, true, true, false>(t) : gradients_with<T, false, true, false>(t);
  }
  return weight ? gradients_with<T, true, true, true>(t) : gradients_with<T, false, true, true>(t);
}

template <class A>
void add_blocks(const A* parts, int64_t blocks, int64_t stride, int64_t width, A* total) {
  using V = Vec<A>;
  for_each_vec<V>(width, [&](int64_t i, int n) __attribute__((always_inline)) {
    WideSum<A> sum;
    for (int64_t block = 0; block < blocks; ++block) sum.add(load_n(parts + block * stride + i, n));
    for (int lane = 0; lane < n; ++lane) total[i + lane] = static_cast<A>(sum.lane(lane));
  });
}

template <class V>
FASTNN_INLINE V group_gradient(V x, V dy, V mean, V rstd, V shift, V slope, V weight) {
  return fma(mean - x, slope, fma(dy, weight, -shift)) * rstd;
}

template <class T>
void group_rows(const T* x, const T* dy, T* dx, int64_t rows, int64_t length, Compute<T> mean,
                Compute<T> rstd, Compute<T> shift, Compute<T> slope, const Compute<T>* weight) {
  using V = Vec<Compute<T>>;
  const V m(mean), a(rstd), b(shift), k(slope);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = r * length;
    const V w(weight[r]);
    for_each_unrolled<V>(length, [&](int64_t i, int n, int) __attribute__((always_inline)) {
      store_n(dx + row + i, group_gradient(load_n(x + row + i, n), load_n(dy + row + i, n), m, a, b, k, w),
              n);
    });
  }
}

template <class T>
void group_columns(const T* x, const T* dy, T* dx, int64_t rows, int64_t width, const Compute<T>* mean,
                   const Compute<T>* rstd, const Compute<T>* shift, const Compute<T>* slope,
                   const Compute<T>* weight) {
  using V = Vec<Compute<T>>;
  for (int64_t row = 0; row < rows * width; row += width) {
    for_each_unrolled<V>(width, [&](int64_t c, int n, int) __attribute__((always_inline)) {
      store_n(dx + row + c,
              group_gradient(load_n(x + row + c, n), load_n(dy + row + c, n), load_n(mean + c, n),
                             load_n(rstd + c, n), load_n(shift + c, n), load_n(slope + c, n),
                             load_n(weight + c, n)),
              n);
    });
  }
}

template <class T>
constexpr NormalizationOps<T> kOps = {moments<T>,    forward<T>,      normalize<T>,
                                      sums<T>,       gradients<T>,    add_blocks<Compute<T>>,
                                      group_rows<T>, group_columns<T>};

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const NormalizationKernels normalization;
const NormalizationKernels normalization = {kOps<float>, kOps<double>, kOps<BFloat16>, kOps<Float16>};
}  // namespace fastnn::cpu::FASTNN_ISA
