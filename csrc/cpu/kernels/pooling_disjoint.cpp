// Pooling by windows that lie side by side, 2 x 2 with stride 2 before all: no padding, no overhang, no
// dilation, and a stride of at most 2 along W. Nothing is staged. Forward: the two columns of 16 windows are
// the even and odd lanes of two loads. Backward: a row of dx is made from the one row of dy above it,
// interleaved, so every dx is written once.
#include "cpu/kernels/pooling_rows.h"

namespace {

using namespace fastnn;  // the Params

template <class C>
using Code = typename CodeOf<C>::type;

struct Pair {
  int first, second;  // lanes of two registers that hold 2n columns
};
template <class V>
FASTNN_INLINE Pair lanes_of_pair(int n) {
  return 2 * n <= V::N ? Pair{2 * n, 0} : Pair{V::N, 2 * n - V::N};
}

// f(first row of the window, offset of the output row, columns) for each output row of the units.
template <class F>
FASTNN_INLINE void for_each_output_row(const PoolShape& s, const PoolBlocks& b, int64_t begin, int64_t end,
                                       const F& f) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.out[1], s.out[2]);
    const int64_t in = u.plane * plane_inputs(s) + u.d * s.stride[0] * s.in[1] * s.in[2] + 2 * u.col_begin;
    const int64_t out = u.plane * plane_outputs(s) + u.d * s.out[1] * s.out[2] + u.col_begin;
    for (int64_t oh = u.row_begin; oh < u.row_end; ++oh)
      f(in + oh * s.stride[1] * s.in[2], out + oh * s.out[2], u.col_end - u.col_begin);
  }
}

// f(even columns, odd columns, row of the window) for the windows at output columns i, i + 1, ...
template <class T, class F>
FASTNN_INLINE void for_each_pair(const PoolShape& s, const T* corner, int64_t i, int lanes, const F& f) {
  using V = Vec<Compute<T>>;
  const Pair pair = lanes_of_pair<V>(lanes);
  const T* x = corner + 2 * i;
  for (int64_t kd = 0; kd < s.kernel[0]; ++kd)
    for (int64_t kh = 0; kh < s.kernel[1]; ++kh) {
      const T* row = x + (kd * s.in[1] + kh) * s.in[2];
      const V a = load_n(row, pair.first);
      const V c = pair.second == 0 ? a : load_n(row + V::N, pair.second);
      f(even_lanes(a, c), odd_lanes(a, c), static_cast<int>(kd * s.kernel[1] + kh));
    }
}

template <class Op, class T, class Finish>
FASTNN_INLINE void fold_pairs(const PoolShape& s, const T* x, T* y, const PoolBlocks& b, int64_t begin,
                              int64_t end, const Finish& finish) {
  using V = Vec<Compute<T>>;
  for_each_output_row(s, b, begin, end, [&](int64_t corner, int64_t out, int64_t cols) {
    for_each_vec<V>(cols, [&](int64_t i, int lanes) {
      V sum(Op::template neutral<Compute<T>>());
      for_each_pair(s, x + corner, i, lanes, [&](V even, V odd, int row) {
        const V both = Op::combine(even, odd);
        sum = row == 0 ? both : Op::combine(sum, both);
      });
      store_n(y + out + i, finish(sum), lanes);
    });
  });
}

void max_forward(const MaxPoolParams& p, const PoolBlocks& b, int64_t begin, int64_t end, char*) {
  with_dtype(p, p.x, p.y, [&]<class T>(const T* x, T* y) {
    using C = Compute<T>;
    using V = Vec<C>;
    const PoolShape& s = p.shape;
    uint8_t* codes = static_cast<uint8_t*>(p.codes);
    if (!codes) return fold_pairs<Max>(s, x, y, b, begin, end, [](V v) { return v; });
    for_each_output_row(s, b, begin, end, [&](int64_t corner, int64_t out, int64_t cols) {
      for_each_vec<V>(cols, [&](int64_t i, int lanes) {
        V best(Max::neutral<C>());
        typename V::IntRaw code = {};
        const auto visit_tap = [&](V v, int tap) {
          const Mask<C> better = (v > best) | isnan(v);
          best = select(better, v, best);
          code = better.v ? typename V::IntRaw{} + static_cast<Code<C>>(tap) : code;
        };
        for_each_pair(s, x + corner, i, lanes, [&](V even, V odd, int row) {
          visit_tap(even, 2 * row);
          visit_tap(odd, 2 * row + 1);
        });
        store_n(y + out + i, best, lanes);
        store_narrow<C>(codes + out + i, code, lanes);
      });
    });
  });
}

// The divisor of every window: none is cut short.
template <class P>
int64_t full_divisor(const P& p) {
  return p.divisor ? p.divisor : tap_count(p.shape);
}

void avg_forward(const AvgPoolParams& p, const PoolBlocks& b, int64_t begin, int64_t end, char*) {
  with_dtype(p, p.x, p.y, [&]<class T>(const T* x, T* y) {
    const Divisor<Compute<T>> divide(full_divisor(p));
    fold_pairs<Sum>(p.shape, x, y, b, begin, end, [&](Vec<Compute<T>> v) { return divide(v); });
  });
}

// For each row of dx column(offset in dy, row of the window, column of the window, lanes) gives its numbers
// from those of the windows; rows and columns between windows are 0.
template <class T, class F>
FASTNN_INLINE void write_rows(const PoolShape& s, T* dx, const PoolBlocks& b, int64_t begin, int64_t end,
                              const F& column) {
  using C = Compute<T>;
  using V = Vec<C>;
  const int64_t stride = s.stride[2], groups = ceil_div(s.in[2], stride);
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.in[1], groups);
    const int64_t width = smaller(s.in[2], u.col_end * stride) - u.col_begin * stride;
    const int64_t od = floor_div(u.d, s.stride[0]), kd = u.d - od * s.stride[0];
    const int64_t plane = u.plane * plane_outputs(s) + od * s.out[1] * s.out[2] + u.col_begin;
    T* row = dx + u.plane * plane_inputs(s) + (u.d * s.in[1] + u.row_begin) * s.in[2] + u.col_begin * stride;
    int64_t oh = floor_div(u.row_begin, s.stride[1]), kh = u.row_begin - oh * s.stride[1];
    for (int64_t h = u.row_begin; h < u.row_end; ++h, row += s.in[2]) {
      const bool covered = od < s.out[0] && kd < s.kernel[0] && oh < s.out[1] && kh < s.kernel[1];
      const int64_t from = plane + oh * s.out[2], row_of_window = kd * s.kernel[1] + kh;
      store_columns(stride, width, row, static_cast<C*>(nullptr), 0, [&](int64_t r, int64_t q) {
        const int64_t left = s.out[2] - u.col_begin - q;
        if (!covered || r >= s.kernel[2] || left <= 0) return V(C(0));
        return column(from + q, row_of_window, r, left < V::N ? static_cast<int>(left) : V::N);
      });
      if (++kh == s.stride[1]) kh = 0, ++oh;
    }
  }
}

void max_backward(const MaxPoolBackwardParams& p, const PoolBlocks& b, int64_t begin, int64_t end, char*) {
  with_dtype(p, p.dy, p.dx, [&]<class T>(const T* dy, T* dx) {
    using C = Compute<T>;
    using V = Vec<C>;
    const uint8_t* codes = static_cast<const uint8_t*>(p.codes);
    const int64_t width = p.shape.kernel[2];
    write_rows(p.shape, dx, b, begin, end, [&](int64_t at, int64_t row, int64_t r, int lanes) {
      const Mask<C> hit{load_wide<C>(codes + at, lanes) == static_cast<Code<C>>(row * width + r)};
      return select(hit, load_n(dy + at, lanes), V(C(0)));
    });
  });
}

void avg_backward(const AvgPoolBackwardParams& p, const PoolBlocks& b, int64_t begin, int64_t end, char*) {
  with_dtype(p, p.dy, p.dx, [&]<class T>(const T* dy, T* dx) {
    const Divisor<Compute<T>> divide(full_divisor(p));
    write_rows(p.shape, dx, b, begin, end,
               [&](int64_t at, int64_t, int64_t, int lanes) { return divide(load_n(dy + at, lanes)); });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const DisjointPoolKernels disjoint_pool;
const DisjointPoolKernels disjoint_pool = {max_forward, max_backward, avg_forward, avg_backward};
}  // namespace fastnn::cpu::FASTNN_ISA
