// Inner loops of batch normalisation; see batchnorm.h for what each computes.
//
// Moments of a block that fits in L1: sums of d = x - m and d * d for a first guess m of the mean. The
// block's mean is m + sum(d) / n and its M2 = sum(d * d) - sum(d)^2 / n, the corrected two-pass formula
// (Chan, Golub, LeVeque 1983). The guess is the mean of the block's beginning; where it is so far off that
// the difference would lose more than a bit, a second pass takes the mean that the first one found: no
// cancellation whatever the data's offset, and one pass nearly always. The caller bounds a block so that one
// lane adds few numbers, and merges blocks in double. Columns are taken kWide registers at a time: whole
// cache lines, enough independent sums.
#include "cpu/kernels/batchnorm.h"

#include "cpu/simd/moments.h"

// gcc 12 takes the arrays of sums below, which begin as zeros, for uninitialised.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace {

using fastnn::Compute;
using fastnn::cpu::BatchNormOps;
using fastnn::cpu::BatchNormRows;

constexpr int kWide = kVecBytes == 64 ? 4 : 2;  // 2 sums x 2 rows x kWide registers must fit the file

FASTNN_INLINE void finish_moments(double count, double centre, double sum, double squares, double* mean,
                                  double* m2) {
  const double rest = squares - sum * sum / count;
  *mean = centre + sum / count;
  *m2 = rest < 0 ? 0 : rest;  // a NaN stays
}

// `mean` to the last bit that numbers of size `scale` have. A finer centre would be rounded away in each
// x - centre, and in the same direction for all x of a binade: a bias that no summation repairs.
template <class A>
FASTNN_INLINE A coarse(A mean, A scale) {
  return (mean + scale) - scale;
}

// Whether sum(d) says that the guess was more than a standard deviation off.
FASTNN_INLINE bool is_far(double count, double sum, double squares) {
  return 2 * sum * sum > count * squares;
}

template <class T>
void row_moments(const T* x, int64_t rows, int64_t length, int64_t stride, double* mean, double* m2) {
  using V = Vec<Compute<T>>;
  using A = Compute<T>;
  const double count = static_cast<double>(rows * length);
  const int64_t head = length < kSums * V::N ? length : kSums * V::N;
  V first(A(0)), scale(A(0));
  for_each_vec<V>(head, [&](int64_t i, int n) __attribute__((always_inline)) {
    first += load_n(x + i, n);
    scale += abs(load_n(x + i, n));
  });
  const A size = reduce_add(scale);
  A centre = coarse(reduce_add(first) / static_cast<A>(head), size);
  for (bool again = false;; again = true) {
    const V m(centre);
    WideSum<A> wide;
    Sums<V> sums;
    const auto deviation = [&](const T* at, int n, int slot) __attribute__((always_inline)) {
      const V d = first_lanes(load_n(at, n) - m, n);
      sums.v[slot] = fma(d, d, sums.v[slot]);
      return d;
    };
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = x + r * stride;
      int64_t i = 0;
      for (; i + kSums * V::N <= length; i += kSums * V::N) {
        const T* at = row + i;
        const V d0 = deviation(at, V::N, 0), d1 = deviation(at + V::N, V::N, 1);
        const V d2 = deviation(at + 2 * V::N, V::N, 2), d3 = deviation(at + 3 * V::N, V::N, 3);
        wide.add((d0 + d1) + (d2 + d3));
      }
      for (; i + V::N <= length; i += V::N) wide.add(deviation(row + i, V::N, 0));
      if (i < length) wide.add(deviation(row + i, static_cast<int>(length - i), 1));
    }
    const double sum = wide.total(), squares = sums.total();
    if (again || !is_far(count, sum, squares)) return finish_moments(count, centre, sum, squares, mean, m2);
    centre = coarse(static_cast<A>(centre + sum / count), size);
  }
}

// body(first column, a Width, lanes of the last register) over all columns.
template <int W>
struct Width {
  static constexpr int value = W;
};
template <class V, class F>
FASTNN_INLINE void for_each_column_block(int64_t width, const F& f) {
  int64_t c = 0;
  for (; c + kWide * V::N <= width; c += kWide * V::N) f(c, Width<kWide>{}, V::N);
  if constexpr (kWide == 4) {
    if (c + 3 * V::N <= width) {
      f(c, Width<3>{}, V::N);
      c += 3 * V::N;
    } else if (c + 2 * V::N <= width) {
      f(c, Width<2>{}, V::N);
      c += 2 * V::N;
    }
  }
  if (c + V::N <= width) {
    f(c, Width<1>{}, V::N);
    c += V::N;
  }
  if (c < width) f(c, Width<1>{}, static_cast<int>(width - c));
}

template <class T>
void column_moments(const T* x, int64_t rows, int64_t width, int64_t stride, double* mean, double* m2) {
  using A = Compute<T>;
  using V = Vec<A>;
  const double count = static_cast<double>(rows);
  const int64_t head = rows < 8 ? rows : 8;
  for_each_column_block<V>(width, [&](int64_t c, auto block, int lanes) __attribute__((always_inline)) {
    constexpr int W = decltype(block)::value;
    const T* column = x + c;
    V m[W], scale[W];
    for (int w = 0; w < W; ++w) {
      V first(A(0));
      scale[w] = V(A(0));
      for (int64_t r = 0; r < head; ++r) {
        const V v = load_n(column + r * stride + w * V::N, lanes);
        first += v;
        scale[w] += abs(v);
      }
      m[w] = coarse(first / V(static_cast<A>(head)), scale[w]);
    }
    for (bool again = false, far = true; far; again = true) {
      V squares[2][W] = {};
      WideSum<A> sum[W];
      const auto deviation = [&](int64_t r, int w, int half) __attribute__((always_inline)) {
        const V d = load_n(column + r * stride + w * V::N, lanes) - m[w];
        squares[half][w] = fma(d, d, squares[half][w]);
        return d;
      };
      int64_t r = 0;
      for (; r + 2 <= rows; r += 2)
        for (int w = 0; w < W; ++w) sum[w].add(deviation(r, w, 0) + deviation(r + 1, w, 1));
      if (r < rows)
        for (int w = 0; w < W; ++w) sum[w].add(deviation(r, w, 0));
      far = false;
      for (int w = 0; w < W; ++w) {
        V found(A(0));
        for (int i = 0; i < lanes; ++i) {
          const int64_t at = c + w * V::N + i;
          const double s = sum[w].lane(i), q = double(squares[0][w][i]) + squares[1][w][i];
          finish_moments(count, m[w][i], s, q, mean + at, m2 + at);
          found.v[i] = static_cast<A>(mean[at]);
          far |= !again && is_far(count, s, q);
        }
        if (far) m[w] = coarse(found, scale[w]);
      }
    }
  });
}

template <class T>
void wide_moments(const T* x, int64_t rows, int64_t outer, int64_t length, int64_t inner, double* mean,
                  double* m2) {
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < length; ++j) sum += to_compute(x[i * outer + j * inner]);
  const double m = sum / static_cast<double>(rows * length);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < length; ++j) {
      const double d = to_compute(x[i * outer + j * inner]) - m;
      squares += d * d;
    }
  }
  *mean = m;
  *m2 = squares;
}

template <class F>
FASTNN_INLINE void for_each_row(const BatchNormRows& rows, const F& f) {
  int64_t c = rows.channel;
  for (int64_t r = 0; r < rows.rows; ++r) {
    f(r * rows.stride, c);
    c += rows.step;
    if (c == rows.C) c = 0;
  }
}

template <class T>
void normalize_rows(const T* x, T* y, BatchNormRows rows, const Compute<T>* mean, const Compute<T>* scale,
                    const Compute<T>* shift) {
  using V = Vec<Compute<T>>;
  for_each_row(rows, [&](int64_t row, int64_t c) __attribute__((always_inline)) {
    const V m(mean[c]), a(scale[c]), b(shift[c]);
    for_each_unrolled<V>(rows.length, [&](int64_t i, int n, int) __attribute__((always_inline)) {
      store_n(y + row + i, fma(load_n(x + row + i, n) - m, a, b), n);
    });
  });
}

template <class T>
void normalize_columns(const T* x, T* y, int64_t rows, int64_t C, const Compute<T>* mean,
                       const Compute<T>* scale, const Compute<T>* shift) {
  using V = Vec<Compute<T>>;
  for (int64_t row = 0; row < rows * C; row += C) {
    for_each_unrolled<V>(C, [&](int64_t c, int n, int) __attribute__((always_inline)) {
      const V d = load_n(x + row + c, n) - load_n(mean + c, n);
      store_n(y + row + c, fma(d, load_n(scale + c, n), load_n(shift + c, n)), n);
    });
  }
}

template <class T>
void row_sums(const T* x, const T* dy, int64_t rows, int64_t length, int64_t stride, Compute<T> mean,
              double* sum, double* dot) {
  using V = Vec<Compute<T>>;
  const V m(mean);
  Sums<V> s, d;
  for (int64_t row = 0; row < rows * stride; row += stride) {
    for_each_unrolled<V>(length, [&](int64_t i, int n, int slot) __attribute__((always_inline)) {
      const V g = load_n(dy + row + i, n);  // 0 in the lanes that are left over
      s.v[slot] += g;
      d.v[slot] = fma(g, load_n(x + row + i, n) - m, d.v[slot]);
    });
  }
  *sum = s.total();
  *dot = d.total();
}

template <class T>
void column_sums(const T* x, const T* dy, int64_t rows, int64_t width, int64_t stride, const Compute<T>* mean,
                 double* sum, double* dot) {
  using A = Compute<T>;
  using V = Vec<A>;
  for_each_column_block<V>(width, [&](int64_t c, auto block, int lanes) __attribute__((always_inline)) {
    constexpr int W = decltype(block)::value;
    V m[W], s[2][W] = {}, d[2][W] = {};
    for (int w = 0; w < W; ++w) m[w] = load_n(mean + c + w * V::N, lanes);
    const auto add = [&](int64_t r, int half) __attribute__((always_inline)) {
      for (int w = 0; w < W; ++w) {
        const int64_t at = r * stride + c + w * V::N;
        const V g = load_n(dy + at, lanes);
        s[half][w] += g;
        d[half][w] = fma(g, load_n(x + at, lanes) - m[w], d[half][w]);
      }
    };
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) {
      add(r, 0);
      add(r + 1, 1);
    }
    if (r < rows) add(r, 0);
    for (int w = 0; w < W; ++w) {
      for (int i = 0; i < lanes; ++i) {
        sum[c + w * V::N + i] = double(s[0][w][i]) + s[1][w][i];
        dot[c + w * V::N + i] = double(d[0][w][i]) + d[1][w][i];
      }
    }
  });
}

// The form, not a * dy + b * x + c: where dy is constant, dy - shift is exactly zero.
template <class V>
FASTNN_INLINE V grad(V x, V dy, V mean, V slope, V shift, V scale) {
  return fma(mean - x, slope, dy - shift) * scale;
}

template <class T>
void grad_rows(const T* x, const T* dy, T* dx, BatchNormRows rows, const Compute<T>* mean,
               const Compute<T>* slope, const Compute<T>* shift, const Compute<T>* scale) {
  using V = Vec<Compute<T>>;
  for_each_row(rows, [&](int64_t row, int64_t c) __attribute__((always_inline)) {
    const V m(mean[c]), k(slope[c]), b(shift[c]), a(scale[c]);
    for_each_unrolled<V>(rows.length, [&](int64_t i, int n, int) __attribute__((always_inline)) {
      store_n(dx + row + i, grad(load_n(x + row + i, n), load_n(dy + row + i, n), m, k, b, a), n);
    });
  });
}

template <class T>
void grad_columns(const T* x, const T* dy, T* dx, int64_t rows, int64_t C, const Compute<T>* mean,
                  const Compute<T>* slope, const Compute<T>* shift, const Compute<T>* scale) {
  using V = Vec<Compute<T>>;
  for (int64_t row = 0; row < rows * C; row += C) {
    for_each_unrolled<V>(C, [&](int64_t c, int n, int) __attribute__((always_inline)) {
      store_n(dx + row + c,
              grad(load_n(x + row + c, n), load_n(dy + row + c, n), load_n(mean + c, n), load_n(slope + c, n),
                   load_n(shift + c, n), load_n(scale + c, n)),
              n);
    });
  }
}

template <class T>
constexpr BatchNormOps<T> kOps = {row_moments<T>,    column_moments<T>,    wide_moments<T>,
                                  normalize_rows<T>, normalize_columns<T>, row_sums<T>,
                                  column_sums<T>,    grad_rows<T>,         grad_columns<T>};

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const BatchNormKernels batchnorm;
const BatchNormKernels batchnorm = {kOps<float>, kOps<double>, kOps<BFloat16>, kOps<Float16>};
}  // namespace fastnn::cpu::FASTNN_ISA
