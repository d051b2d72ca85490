// Inner loops of layer, RMS and group norm; see normalization.h for what each computes.
//
// Backward takes a tile of rows side by side: their sums are independent chains of additions, and the
// gradients of the parameters are loaded and stored once for all of them. The caller bounds what one lane
// adds up in float: pieces of rows for the sums, blocks of rows for the gradients of the parameters.
#include "cpu/kernels/normalization.h"

#include "cpu/simd/moments.h"

namespace {

using fastnn::Compute;
using fastnn::cpu::kNormTile;
using fastnn::cpu::NormalizationOps;
using fastnn::cpu::NormTile;

template <class T>
double squares(const T* x, int64_t length) {
  using V = Vec<Compute<T>>;
  Sums<V> sum;
  for_each_unrolled<V>(length, [&](int64_t i, int n, int slot) __attribute__((always_inline)) {
    const V a = load_n(x + i, n);  // 0 in the lanes that are left over
    sum.v[slot] = fma(a, a, sum.v[slot]);
  });
  const double total = sum.total();
  if (total - total == 0) return total;
  double wide = 0;  // overflow in float, or a NaN or an infinity in x
  for (int64_t i = 0; i < length; ++i) {
    const double a = to_compute(x[i]);
    wide += a * a;
  }
  return wide;
}

template <class T, bool kWeight, bool kBias>
void normalize_row(const T* x, T* y, int64_t length, Compute<T> mean, Compute<T> rstd, Compute<T> lost,
                   const Compute<T>* weight, const Compute<T>* bias) {
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
  constexpr decltype(&normalize<T>) kForms[2][2] = {
      {normalize_row<T, false, false>, normalize_row<T, false, true>},
      {normalize_row<T, true, false>, normalize_row<T, true, true>}};
  kForms[weight != nullptr][bias != nullptr](x, y, length, mean, rstd, lost, weight, bias);
}

template <class T, int R, bool kWeight>
void sums_of_rows(const NormTile<T>& t, double* sum, double* dot) {
  using A = Compute<T>;
  using V = Vec<A>;
  V s[R], d[R], m[R];
  for (int r = 0; r < R; ++r) s[r] = d[r] = V(A(0)), m[r] = V(t.mean[r]);
  for_each_vec<V>(t.length, [&](int64_t i, int n) __attribute__((always_inline)) {
    const V w = kWeight ? load_n(t.weight + i, n) : V(A(1));
    for (int r = 0; r < R; ++r) {
      const int64_t at = r * t.stride + i;
      V g = load_n(t.dy + at, n);  // 0 in the lanes that are left over
      if constexpr (kWeight) g *= w;
      s[r] += g;
      d[r] = fma(g, load_n(t.x + at, n) - m[r], d[r]);
    }
  });
  for (int r = 0; r < R; ++r) sum[r] = wide_total(s[r]), dot[r] = wide_total(d[r]);
}

template <class T>
void sums(const NormTile<T>& t, double* sum, double* dot) {
  constexpr decltype(&sums<T>) kForms[2][kNormTile] = {{sums_of_rows<T, 1, false>, sums_of_rows<T, 2, false>,
                                                        sums_of_rows<T, 3, false>, sums_of_rows<T, 4, false>},
                                                       {sums_of_rows<T, 1, true>, sums_of_rows<T, 2, true>,
                                                        sums_of_rows<T, 3, true>, sums_of_rows<T, 4, true>}};
  kForms[t.weight != nullptr][t.rows - 1](t, sum, dot);
}

template <class T, int R, bool kWeight, bool kInput, bool kParameters>
void gradients_of_rows(const NormTile<T>& t) {
  using A = Compute<T>;
  using V = Vec<A>;
  V m[R], a[R], b[R], k[R];
  for (int r = 0; r < R; ++r)
    m[r] = V(t.mean[r]), a[r] = V(t.rstd[r]), b[r] = V(t.shift[r]), k[r] = V(t.slope[r]);
  for_each_vec<V>(t.length, [&](int64_t i, int n) __attribute__((always_inline)) {
    const V w = kWeight ? load_n(t.weight + i, n) : V(A(1));
    V dw(A(0)), db(A(0));
    for (int r = 0; r < R; ++r) {
      const int64_t at = r * t.stride + i;
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

template <class T, int R>
void gradients_with(const NormTile<T>& t) {
  const bool weight = t.weight != nullptr;
  if (t.dx == nullptr) return gradients_of_rows<T, R, false, false, true>(t);
  if (t.dweight == nullptr) {
    return weight ? gradients_of_rows<T, R, true, true, false>(t)
                  : gradients_of_rows<T, R, false, true, false>(t);
  }
  return weight ? gradients_of_rows<T, R, true, true, true>(t)
                : gradients_of_rows<T, R, false, true, true>(t);
}

template <class T>
void gradients(const NormTile<T>& t) {
  constexpr decltype(&gradients<T>) kForms[kNormTile] = {gradients_with<T, 1>, gradients_with<T, 2>,
                                                         gradients_with<T, 3>, gradients_with<T, 4>};
  kForms[t.rows - 1](t);
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
constexpr NormalizationOps<T> kOps = {
    squares<T>, normalize<T>, sums<T>, gradients<T>, add_blocks<Compute<T>>, group_rows<T>, group_columns<T>};

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const NormalizationKernels normalization;
const NormalizationKernels normalization = {kOps<float>, kOps<double>, kOps<BFloat16>, kOps<Float16>};
}  // namespace fastnn::cpu::FASTNN_ISA
