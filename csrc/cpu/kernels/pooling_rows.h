// What the max and average kernels share.
//
// NCHW, fixed windows: rows of x are staged in scratch de-interleaved by their residue modulo the stride and
// padded with the neutral element. So every tap of 16 neighbouring windows is one plain load, for any stride,
// padding and dilation, and no output column is a special case. A fold that remembers no position (a sum, a
// maximum without codes) is separable: the rows of the window are folded while they are staged.
// channels_last: the same folds, with the channels of one pixel in the place of a row.
#pragma once
#include "cpu/kernels/pooling.h"
#include "cpu/simd/shuffle.h"
#include "cpu/simd/vec.h"

namespace {

using fastnn::Compute;

struct Sum {
  template <class C>
  static FASTNN_INLINE C neutral() {
    return C(0);
  }
  template <class C>
  static FASTNN_INLINE Vec<C> combine(Vec<C> a, Vec<C> b) {
    return a + b;
  }
  template <class C>
  static FASTNN_INLINE C combine_scalar(C a, C b) {
    return a + b;
  }
};
struct Max {
  template <class C>
  static FASTNN_INLINE C neutral() {
    return -static_cast<C>(__builtin_inf());
  }
  template <class C>
  static FASTNN_INLINE Vec<C> combine(Vec<C> a, Vec<C> b) {
    return max_nan(a, b);
  }
  template <class C>
  static FASTNN_INLINE C combine_scalar(C a, C b) {
    return (b > a || b != b) ? b : a;
  }
};

// What is done to a finished fold; Mean below is the other kind.
struct Keep {
  template <class C>
  FASTNN_INLINE Vec<C> operator()(Vec<C> v, int64_t) const {
    return v;
  }
  FASTNN_INLINE void columns(int64_t, int64_t) {}
  FASTNN_INLINE void row(int64_t, int64_t) {}
};

FASTNN_INLINE bool power_of_two(int64_t v) {
  return v > 0 && (v & (v - 1)) == 0;
}

// One divisor for a whole vector; a power of two is multiplied by its exact reciprocal.
template <class C>
struct Divisor {
  bool exact;
  Vec<C> by;
  FASTNN_INLINE explicit Divisor(int64_t count)
      : exact(power_of_two(count)), by(exact ? 1 / static_cast<C>(count) : static_cast<C>(count)) {}
  FASTNN_INLINE Vec<C> operator()(Vec<C> v) const { return exact ? v * by : v / by; }
};

// A count that the compiler knows: loops over the common numbers of taps unroll.
template <int64_t K>
struct Known {
  FASTNN_INLINE constexpr operator int64_t() const { return K; }
};
template <class F>
FASTNN_INLINE void with_count(int64_t n, const F& f) {
  switch (n) {
    case 1: return f(Known<1>{});
    case 2: return f(Known<2>{});
    case 3: return f(Known<3>{});
    default: return f(n);
  }
}

// The tap counts of 2 x 2 and 3 x 3 windows besides the short ones.
template <class F>
FASTNN_INLINE void with_window(int64_t n, const F& f) {
  switch (n) {
    case 2: return f(Known<2>{});
    case 3: return f(Known<3>{});
    case 4: return f(Known<4>{});
    case 9: return f(Known<9>{});
    default: return f(n);
  }
}

template <class C>
FASTNN_INLINE void fill(C* p, int64_t n, C value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

// A register of which only the first n lanes count; the others become `rest`.
template <class C>
FASTNN_INLINE Vec<C> keep_lanes(Vec<C> v, int n, Vec<C> rest) {
  return n == Vec<C>::N ? v : select(iota<C>() < Vec<C>(static_cast<C>(n)), v, rest);
}

// f(x, y) with the pointers in their type.
template <class P, class F>
FASTNN_INLINE void with_dtype(const P& p, const void* in, void* out, const F& f) {
  fastnn::visit(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    f(static_cast<const T*>(in), static_cast<T*>(out));
  });
}

// Columns [begin, begin + width) of x, begin a multiple of the stride, and where they go in a staged row.
struct StagedColumns {
  int64_t begin, width, position, stride, length;
};
template <class C>
FASTNN_INLINE StagedColumns staged_columns(const PoolShape& s, const ForwardLines<C>& lines,
                                           const PoolUnit& u) {
  const int64_t first = u.col_begin + lines.min_shift, q = larger(first, 0), stride = s.stride[2];
  const int64_t end = smaller(s.in[2], (u.col_end + lines.min_shift + lines.span) * stride);
  return {q * stride, larger(end - q * stride, 0), q - first, stride, lines.length};
}

template <class Op, class T, class Count>
FASTNN_INLINE void stage_rows(const T* const* rows, Count n_rows, const StagedColumns& at, Compute<T>* stage,
                              Compute<T>* line) {
  using C = Compute<T>;
  using V = Vec<C>;
  const V rest(Op::template neutral<C>());
  const auto fold = [&](int64_t i, int lanes) {
    V v = load_n(rows[0] + at.begin + i, lanes);
    for (int64_t r = 1; r < n_rows; ++r) v = Op::combine(v, load_n(rows[r] + at.begin + i, lanes));
    return keep_lanes(v, lanes, rest);
  };
  C* out = stage + at.position;
  if (at.stride == 1) {
    for_each_vec<V>(at.width, [&](int64_t i, int lanes) { store(out + i, fold(i, lanes)); });
  } else if (at.stride == 2) {
    const auto store_pair = [&](int64_t i, V a, V b) {
      store(out + i / 2, even_lanes(a, b));
      store(out + at.length + i / 2, odd_lanes(a, b));
    };
    int64_t i = 0;
    for (; i + 2 * V::N <= at.width; i += 2 * V::N) store_pair(i, fold(i, V::N), fold(i + V::N, V::N));
    if (i + V::N <= at.width) {
      const int left = static_cast<int>(at.width - i - V::N);
      store_pair(i, fold(i, V::N), left ? fold(i + V::N, left) : rest);
    } else if (i < at.width) {
      store_pair(i, fold(i, static_cast<int>(at.width - i)), rest);
    }
  } else {
    for_each_vec<V>(at.width, [&](int64_t i, int lanes) { store(line + i, fold(i, lanes)); });
    const int64_t groups = ceil_div(at.width, at.stride);
    fill(line + at.width, groups * at.stride - at.width, Op::template neutral<C>());
    for (int64_t r = 0; r < at.stride; ++r)
      for (int64_t q = 0; q < groups; ++q) out[r * at.length + q] = line[q * at.stride + r];
  }
}

// y[i] = finish(taps[0][i] + taps[1][i] + ...), + being Op.
template <class Op, class S, class T, class Count, class Finish>
FASTNN_INLINE void fold_taps(const S* const* taps, Count n_taps, int64_t n, T* y, const Finish& finish) {
  using V = Vec<Compute<T>>;
  for_each_vec<V>(n, [&](int64_t i, int lanes) {
    V v = load_n(taps[0] + i, lanes);
    for (int64_t k = 1; k < n_taps; ++k) v = Op::combine(v, load_n(taps[k] + i, lanes));
    store_n(y + i, finish(v, i), lanes);
  });
}

// The rows of x that window (od, oh) reads, and their places kd * KH + kh in it.
template <class T>
FASTNN_INLINE int64_t window_rows(const PoolShape& s, const T* plane, int64_t od, int64_t oh, const T** rows,
                                  int32_t* codes = nullptr) {
  const PoolWindow wd = pool_window(s, 0, od), wh = pool_window(s, 1, oh);
  int64_t n = 0;
  for (int64_t kd = wd.lo; kd < wd.hi; ++kd)
    for (int64_t kh = wh.lo; kh < wh.hi; ++kh, ++n) {
      rows[n] = plane + ((wd.begin + kd * s.dilation[0]) * s.in[1] + wh.begin + kh * s.dilation[1]) * s.in[2];
      if (codes) codes[n] = static_cast<int32_t>(kd * s.kernel[1] + kh);
    }
  return n;
}

FASTNN_INLINE int64_t plane_inputs(const PoolShape& s) {
  return s.in[0] * s.in[1] * s.in[2];
}
FASTNN_INLINE int64_t plane_outputs(const PoolShape& s) {
  return s.out[0] * s.out[1] * s.out[2];
}

// NCHW, fixed windows, no codes.
template <class Op, class T, class Finish>
void fold_forward_rows(const PoolShape& s, const T* x, T* y, const PoolBlocks& b, int64_t begin, int64_t end,
                       PoolScratch scratch, Finish finish) {
  using C = Compute<T>;
  const ForwardLines<C> lines(s, b, false, scratch);
  const T** rows = reinterpret_cast<const T**>(lines.rows);
  int64_t prepared = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.out[1], s.out[2]);
    if (u.col_block != prepared) {
      prepared = u.col_block;
      fill(lines.stage, s.stride[2] * lines.length, Op::template neutral<C>());
      for (int64_t kw = 0; kw < s.kernel[2]; ++kw) {
        const ColumnTap tap = column_tap(s, kw);
        lines.taps[kw] = lines.stage + tap.residue * lines.length + tap.shift - lines.min_shift;
      }
      finish.columns(u.col_begin, u.col_end);
    }
    const StagedColumns at = staged_columns(s, lines, u);
    const T* plane = x + u.plane * plane_inputs(s);
    T* out = y + u.plane * plane_outputs(s) + u.d * s.out[1] * s.out[2] + u.col_begin;
    for (int64_t oh = u.row_begin; oh < u.row_end; ++oh) {
      const int64_t n_rows = window_rows(s, plane, u.d, oh, rows);
      with_count(n_rows, [&](auto n) { stage_rows<Op>(rows, n, at, lines.stage, lines.line); });
      finish.row(u.d, oh);
      with_count(s.kernel[2], [&](auto n) {
        fold_taps<Op, C>(lines.taps, n, u.col_end - u.col_begin, out + oh * s.out[2], finish);
      });
    }
  }
}

FASTNN_INLINE const PoolWindow* column_windows(const PoolShape& s, PoolScratch& scratch) {
  PoolWindow* windows = scratch.take<PoolWindow>(s.out[2]);
  for (int64_t ow = 0; ow < s.out[2]; ++ow) windows[ow] = pool_window(s, 2, ow);
  return windows;
}

// NCHW, windows of any size, no codes: the rows of a window are folded into one row, and that is folded
// window by window.
template <class Op, class T, class Finish>
void fold_forward_lines(const PoolShape& s, const T* x, T* y, const PoolBlocks& b, int64_t begin, int64_t end,
                        PoolScratch scratch, const Finish& finish) {
  using C = Compute<T>;
  C* line = scratch.take<C>(s.in[2] + kSlack);
  const T** rows = scratch.take<const T*>(s.kernel[0] * s.kernel[1]);
  const PoolWindow* windows = column_windows(s, scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.out[1], s.out[2]);
    const T* plane = x + u.plane * plane_inputs(s);
    T* out = y + u.plane * plane_outputs(s) + u.d * s.out[1] * s.out[2];
    for (int64_t oh = u.row_begin; oh < u.row_end; ++oh) {
      const int64_t n_rows = window_rows(s, plane, u.d, oh, rows);
      fold_taps<Op, T>(rows, n_rows, s.in[2], line, Keep{});
      const int64_t outer = finish.outer_count(u.d, oh);
      for (int64_t ow = u.col_begin; ow < u.col_end; ++ow) {
        const PoolWindow w = windows[ow];
        const C* in = line + w.begin;
        C v = in[w.lo * s.dilation[2]];
        for (int64_t k = w.lo + 1; k < w.hi; ++k) v = Op::combine_scalar(v, in[k * s.dilation[2]]);
        out[oh * s.out[2] + ow] = from_compute<T>(finish(v, outer, w.hi - w.lo, ow));
      }
    }
  }
}

// channels_last, windows of any kind: pixel(taps, codes, n_taps, od, oh, ow, y offset) for each output pixel.
template <class T, class F>
FASTNN_INLINE void for_each_output_pixel(const PoolShape& s, const T* x, const PoolBlocks& b, int64_t begin,
                                         int64_t end, PoolScratch scratch, const F& pixel) {
  const T** taps = scratch.take<const T*>(tap_count(s));
  int32_t* codes = scratch.take<int32_t>(tap_count(s));
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.out[1], s.out[2]);
    const T* image = x + u.plane * plane_inputs(s) * s.c;
    const PoolWindow wd = pool_window(s, 0, u.d);
    for (int64_t oh = u.row_begin; oh < u.row_end; ++oh) {
      const PoolWindow wh = pool_window(s, 1, oh);
      for (int64_t ow = u.col_begin; ow < u.col_end; ++ow) {
        const PoolWindow ww = pool_window(s, 2, ow);
        int64_t n = 0;
        for (int64_t kd = wd.lo; kd < wd.hi; ++kd)
          for (int64_t kh = wh.lo; kh < wh.hi; ++kh) {
            const int64_t row = (wd.begin + kd * s.dilation[0]) * s.in[1] + wh.begin + kh * s.dilation[1];
            for (int64_t kw = ww.lo; kw < ww.hi; ++kw, ++n) {
              taps[n] = image + (row * s.in[2] + ww.begin + kw * s.dilation[2]) * s.c;
              codes[n] = static_cast<int32_t>((kd * s.kernel[1] + kh) * s.kernel[2] + kw);
            }
          }
        pixel(taps, codes, n, u.d, oh, ow,
              (((u.plane * s.out[0] + u.d) * s.out[1] + oh) * s.out[2] + ow) * s.c);
      }
    }
  }
}

// channels_last: pixel(windows, n, offset of dx) for each input pixel; windows are those that read it. Their
// divisor is outer(od, oh) * columns[ow]; no columns: 1. Rows and columns of windows are looked up once and
// combined here.
struct CoveringWindow {
  int64_t offset;  // of its channels in dy
  int32_t tap;
  int64_t divisor;
};
template <class F, class D>
FASTNN_INLINE void for_each_input_pixel(const PoolShape& s, const PoolBlocks& b, int64_t begin, int64_t end,
                                        PoolScratch scratch, const F& pixel, const D& outer,
                                        const int64_t* columns) {
  const int64_t most_rows = pool_overlap(s, 0) * pool_overlap(s, 1), most_columns = pool_overlap(s, 2);
  CoveringWindow* windows = scratch.take<CoveringWindow>(most_rows * most_columns);
  CoveringWindow* rows = scratch.take<CoveringWindow>(most_rows);
  CoveringWindow* at_column = scratch.take<CoveringWindow>(s.in[2] * most_columns);
  int64_t* n_columns = scratch.take<int64_t>(s.in[2]);
  for (int64_t w = 0; w < s.in[2]; ++w) {
    const PoolRange ws = pool_covering(s, 2, w);
    int64_t n = 0;
    for (int64_t ow = ws.begin; ow < ws.end; ++ow) {
      const int64_t kw = pool_tap(s, 2, ow, w);
      if (kw < 0) continue;
      at_column[w * most_columns + n++] = {ow * s.c, static_cast<int32_t>(kw), columns ? columns[ow] : 1};
    }
    n_columns[w] = n;
  }
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.in[1], s.in[2]);
    const PoolRange ds = pool_covering(s, 0, u.d);
    for (int64_t h = u.row_begin; h < u.row_end; ++h) {
      const PoolRange hs = pool_covering(s, 1, h);
      int64_t n_rows = 0;
      for (int64_t od = ds.begin; od < ds.end; ++od) {
        const int64_t kd = pool_tap(s, 0, od, u.d);
        for (int64_t oh = hs.begin; oh < hs.end && kd >= 0; ++oh) {
          const int64_t kh = pool_tap(s, 1, oh, h);
          if (kh < 0) continue;
          rows[n_rows++] = {((u.plane * s.out[0] + od) * s.out[1] + oh) * s.out[2] * s.c,
                            static_cast<int32_t>((kd * s.kernel[1] + kh) * s.kernel[2]), outer(od, oh)};
        }
      }
      int64_t dx = ((u.plane * s.in[0] + u.d) * s.in[1] + h) * s.in[2] * s.c;
      for (int64_t w = 0; w < s.in[2]; ++w, dx += s.c) {
        const CoveringWindow* column = at_column + w * most_columns;
        int64_t n = 0;
        for (int64_t r = 0; r < n_rows; ++r)
          for (int64_t k = 0; k < n_columns[w]; ++k)
            windows[n++] = {rows[r].offset + column[k].offset, rows[r].tap + column[k].tap,
                            rows[r].divisor * column[k].divisor};
        pixel(windows, n, dx);
      }
    }
  }
}

// --- backward, NCHW --------------------------------------------------------------------------------

// Column c = q * stride + r of a row of dx is column(r, q), for the groups q of a block; `line` has room
// for stride * length numbers.
template <class T, class F>
FASTNN_INLINE void store_columns(int64_t stride, int64_t width, T* row, Compute<T>* line, int64_t length,
                                 const F& column) {
  using V = Vec<Compute<T>>;
  if (stride == 1) {
    for_each_vec<V>(width, [&](int64_t i, int lanes) { store_n(row + i, column(0, i), lanes); });
  } else if (stride == 2) {
    int64_t i = 0;
    for (; i + 2 * V::N <= width; i += 2 * V::N) {
      const V a = column(0, i / 2), b = column(1, i / 2);
      store(row + i, interleave_low(a, b));
      store(row + i + V::N, interleave_high(a, b));
    }
    if (i < width) {
      const V a = column(0, i / 2), b = column(1, i / 2);
      const int left = static_cast<int>(width - i);
      store_n(row + i, interleave_low(a, b), left < V::N ? left : V::N);
      if (left > V::N) store_n(row + i + V::N, interleave_high(a, b), left - V::N);
    }
  } else {
    const int64_t groups = ceil_div(width, stride);
    for (int64_t r = 0; r < stride; ++r)
      for (int64_t q = 0; q < groups; q += V::N) store(line + r * length + q, column(r, q));
    int64_t c = 0;
    for (int64_t q = 0; q < groups; ++q)
      for (int64_t r = 0; r < stride && c < width; ++r, ++c) row[c] = from_compute<T>(line[r * length + q]);
  }
}

}  // namespace
