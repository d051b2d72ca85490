// Average pooling: y[o] = sum of x over the window / divisor. Forward: see pooling_rows.h.
//
// Backward: dx[i] = sum of dy[o] / divisor[o] over the windows that read i. The mean is separable, so a row
// of dy is divided and spread along W once, and a row of dx is the sum of the few spread rows above it: each
// dx is written once, nothing is zeroed or scattered, and the order of every sum is fixed.
#include "cpu/kernels/pooling_rows.h"

namespace {

using fastnn::AvgPoolBackwardParams;
using fastnn::AvgPoolParams;

// Divides by the number of elements, a product of one factor per dimension. Powers of two, as in a
// 2 x 2 window, are multiplied by their exact reciprocal instead.
template <class C>
struct Mean {
  const PoolShape& s;
  bool include_pad;
  int64_t override_with;
  C *counts, *divisors;
  int64_t n = 0;
  C last = 0;
  bool exact_columns = false, multiply = false;

  FASTNN_INLINE int64_t outer_count(int64_t od, int64_t oh) const {
    return override_with ? override_with
                         : pool_count(s, 0, od, include_pad) * pool_count(s, 1, oh, include_pad);
  }
  FASTNN_INLINE int64_t column_count(int64_t ow) const {
    return override_with ? 1 : pool_count(s, 2, ow, include_pad);
  }

  FASTNN_INLINE void columns(int64_t begin, int64_t end) {
    n = end - begin;
    last = 0;
    exact_columns = true;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t count = column_count(begin + i);
      counts[i] = static_cast<C>(count);
      exact_columns &= power_of_two(count);
    }
  }
  FASTNN_INLINE void row(int64_t od, int64_t oh) {
    const int64_t count = outer_count(od, oh);
    const C outer = static_cast<C>(count);
    if (outer == last) return;
    last = outer;
    multiply = exact_columns && override_with >= 0 && power_of_two(count);
    for (int64_t i = 0; i < n; ++i) divisors[i] = multiply ? 1 / (outer * counts[i]) : outer * counts[i];
  }
  FASTNN_INLINE Vec<C> operator()(Vec<C> v, int64_t i) const {
    return multiply ? v * load(divisors + i) : v / load(divisors + i);
  }
  // For a window of `taps` columns in a row whose outer_count() is `outer`.
  FASTNN_INLINE C operator()(C v, int64_t outer, int64_t taps, int64_t ow) const {
    return v / static_cast<C>(outer * (s.adaptive ? taps : column_count(ow)));
  }
};

template <class C, class P>
FASTNN_INLINE Mean<C> mean_of(const P& p, C* counts, C* divisors) {
  return {p.shape, p.count_include_pad, p.divisor, counts, divisors};
}

// mean.column_count() of every output column.
template <class P>
const int64_t* column_counts(const P& p, PoolScratch& scratch) {
  const auto mean = mean_of<float>(p, static_cast<float*>(nullptr), static_cast<float*>(nullptr));
  int64_t* counts = scratch.take<int64_t>(p.shape.out[2]);
  for (int64_t ow = 0; ow < p.shape.out[2]; ++ow) counts[ow] = mean.column_count(ow);
  return counts;
}

void forward_rows(const AvgPoolParams& p, const PoolBlocks& b, int64_t begin, int64_t end, char* scratch) {
  with_dtype(p, p.x, p.y, [&]<class T>(const T* x, T* y) {
    using C = Compute<T>;
    PoolScratch pieces(scratch);
    const ForwardLines<C> lines(p.shape, b, false, pieces);
    fold_forward_rows<Sum>(p.shape, x, y, b, begin, end, PoolScratch(scratch),
                           mean_of<C>(p, lines.counts, lines.divisors));
  });
}

void forward_lines(const AvgPoolParams& p, const PoolBlocks& b, int64_t begin, int64_t end, char* scratch) {
  with_dtype(p, p.x, p.y, [&]<class T>(const T* x, T* y) {
    using C = Compute<T>;
    fold_forward_lines<Sum>(p.shape, x, y, b, begin, end, PoolScratch(scratch),
                            mean_of<C>(p, static_cast<C*>(nullptr), static_cast<C*>(nullptr)));
  });
}

void forward_channels_last(const AvgPoolParams& p, const PoolBlocks& b, int64_t begin, int64_t end,
                           char* scratch) {
  with_dtype(p, p.x, p.y, [&]<class T>(const T* x, T* y) {
    using C = Compute<T>;
    PoolScratch pieces(scratch);
    const int64_t* columns = column_counts(p, pieces);
    const auto mean = mean_of<C>(p, static_cast<C*>(nullptr), static_cast<C*>(nullptr));
    int64_t last_d = -1, last_h = -1, outer = 1, count = 1;
    Divisor<C> divide(1);
    for_each_output_pixel(
        p.shape, x, b, begin, end, pieces,
        [&](const T** taps, const int32_t*, int64_t n, int64_t od, int64_t oh, int64_t ow, int64_t at) {
          if (oh != last_h || od != last_d) last_h = oh, last_d = od, outer = mean.outer_count(od, oh);
          if (outer * columns[ow] != count) count = outer * columns[ow], divide = Divisor<C>(count);
          with_window(n, [&](auto known) {
            fold_taps<Sum>(taps, known, p.shape.c, y + at, [&](Vec<C> v, int64_t) { return divide(v); });
          });
        });
  });
}

template <class C, class P>
C plane_divisor(const P& p) {
  const Mean<C> mean = mean_of<C>(p, static_cast<C*>(nullptr), static_cast<C*>(nullptr));
  return static_cast<C>(mean.outer_count(0, 0) * mean.column_count(0));
}

// One window that is the whole plane: a sum over contiguous memory.
void forward_plane(const AvgPoolParams& p, int64_t begin, int64_t end) {
  with_dtype(p, p.x, p.y, [&]<class T>(const T* x, T* y) {
    using C = Compute<T>;
    using V = Vec<C>;
    const int64_t n = plane_inputs(p.shape);
    const C divisor = plane_divisor<C>(p);
    for (int64_t plane = begin; plane < end; ++plane) {
      const T* in = x + plane * n;
      V sums[4] = {V(C(0)), V(C(0)), V(C(0)), V(C(0))};
      int64_t i = 0;
      for (; i + 4 * V::N <= n; i += 4 * V::N)
        for (int k = 0; k < 4; ++k) sums[k] += load(in + i + k * V::N);
      for (int k = 0; i < n; i += V::N, ++k) {
        const int64_t left = n - i;
        sums[k & 3] += load_n(in + i, left < V::N ? static_cast<int>(left) : V::N);
      }
      const C sum = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
      y[plane] = from_compute<T>(sum / divisor);
    }
  });
}

void backward_plane(const AvgPoolBackwardParams& p, int64_t begin, int64_t end) {
  with_dtype(p, p.dy, p.dx, [&]<class T>(const T* dy, T* dx) {
    using V = Vec<Compute<T>>;
    const int64_t n = plane_inputs(p.shape);
    const auto divisor = plane_divisor<Compute<T>>(p);
    for (int64_t plane = begin; plane < end; ++plane) {
      const V g(to_compute(dy[plane]) / divisor);
      for_each_vec<V>(n, [&](int64_t i, int lanes) { store_n(dx + plane * n + i, g, lanes); });
    }
  });
}

// Divides row (od, oh) of dy and spreads it along W, into `spread`.
template <class T, class C>
void spread_row(const PoolShape& s, const BackwardLines<C>& lines, const PoolUnit& u, const T* dy, C outer,
                C* divided, C* spread) {
  using V = Vec<C>;
  if (s.adaptive) {
    for_each_vec<V>(s.out[2], [&](int64_t i, int lanes) {
      store(divided + i, load_n(dy + i, lanes) / (load(lines.counts + i) * V(outer)));
    });
    fill(spread, s.in[2], C(0));
    for (int64_t ow = 0; ow < s.out[2]; ++ow) {
      const PoolWindow w = pool_window(s, 2, ow);
      const C g = divided[ow];
      for (int64_t k = 0; k < w.hi; ++k) spread[w.begin + k] += g;
    }
    return;
  }
  const PoolRange o = lines.outputs(s, u);
  C* first = divided + o.begin - (u.col_begin - lines.max_shift);
  for_each_vec<V>(o.end - o.begin, [&](int64_t i, int lanes) {
    const V g = load_n(dy + o.begin + i, lanes) / (load(lines.counts + i) * V(outer));
    store(first + i, keep_lanes(g, lanes, V(C(0))));
  });
  const int64_t width = smaller(s.in[2], u.col_end * s.stride[2]) - u.col_begin * s.stride[2];
  store_columns(s.stride[2], width, spread, lines.line, lines.length, [&](int64_t r, int64_t q) {
    V sum(C(0));
    for (int64_t t = lines.residue_begin[r]; t < lines.residue_begin[r + 1]; ++t)
      sum += load(divided + lines.tap_offsets[t] + q);
    return sum;
  });
}

template <class T>
void backward_rows_of(const AvgPoolBackwardParams& p, const T* dy, T* dx, const PoolBlocks& b, int64_t begin,
                      int64_t end, PoolScratch scratch) {
  using C = Compute<T>;
  const PoolShape& s = p.shape;
  const BackwardLines<C> lines(s, b, s.adaptive, scratch);
  const C** parts = scratch.take<const C*>(lines.slots);
  const Mean<C> mean = mean_of<C>(p, lines.counts, static_cast<C*>(nullptr));
  const int64_t stride = s.adaptive ? 1 : s.stride[2], groups = ceil_div(s.in[2], stride);
  if (!s.adaptive) lines.sort_taps(s);
  int64_t prepared = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.in[1], groups);
    if (u.col_block != prepared) {
      prepared = u.col_block;
      fill(lines.stage, lines.length, C(0));
      fill(lines.counts, lines.length, C(1));
      const PoolRange o = s.adaptive ? PoolRange{0, s.out[2]} : lines.outputs(s, u);
      for (int64_t i = 0; i < o.end - o.begin; ++i)
        lines.counts[i] = static_cast<C>(mean.column_count(o.begin + i));
    }
    fill(lines.held, lines.slots, int64_t{-1});
    const T* dy_plane = dy + u.plane * plane_outputs(s);
    T* dx_plane = dx + u.plane * plane_inputs(s) + u.d * s.in[1] * s.in[2] + u.col_begin * stride;
    const int64_t width = smaller(s.in[2], u.col_end * stride) - u.col_begin * stride;
    const PoolRange ds = pool_covering(s, 0, u.d);
    for (int64_t h = u.row_begin; h < u.row_end; ++h) {
      const PoolRange hs = pool_covering(s, 1, h);
      int64_t n = 0;
      for (int64_t od = ds.begin; od < ds.end; ++od)
        for (int64_t oh = hs.begin; oh < hs.end; ++oh) {
          const int64_t slot = lines.slot(od, oh), row = od * s.out[1] + oh;
          C* spread = lines.spread + slot * lines.width;
          if (lines.held[slot] != row) {
            lines.held[slot] = row;
            spread_row(s, lines, u, dy_plane + row * s.out[2], static_cast<C>(mean.outer_count(od, oh)),
                       lines.stage, spread);
          }
          parts[n++] = spread;
        }
      T* out = dx_plane + h * s.in[2];
      if (n == 0) {
        for (int64_t i = 0; i < width; ++i) out[i] = T{};
      } else {
        with_count(n, [&](auto count) { fold_taps<Sum>(parts, count, width, out, Keep{}); });
      }
    }
  }
}

void backward_rows(const AvgPoolBackwardParams& p, const PoolBlocks& b, int64_t begin, int64_t end,
                   char* scratch) {
  with_dtype(p, p.dy, p.dx, [&]<class T>(const T* dy, T* dx) {
    backward_rows_of(p, dy, dx, b, begin, end, PoolScratch(scratch));
  });
}

void backward_channels_last(const AvgPoolBackwardParams& p, const PoolBlocks& b, int64_t begin, int64_t end,
                            char* scratch) {
  with_dtype(p, p.dy, p.dx, [&]<class T>(const T* dy, T* dx) {
    using C = Compute<T>;
    using V = Vec<C>;
    PoolScratch pieces(scratch);
    const int64_t* columns = column_counts(p, pieces);
    const auto mean = mean_of<C>(p, static_cast<C*>(nullptr), static_cast<C*>(nullptr));
    for_each_input_pixel(
        p.shape, b, begin, end, pieces,
        [&](const CoveringWindow* windows, int64_t n, int64_t at) {
          // Away from the borders all divisors are equal, and one division after the sum is enough.
          bool uniform = n > 0;
          for (int64_t k = 1; k < n; ++k) uniform &= windows[k].divisor == windows[0].divisor;
          const Divisor<C> last(uniform ? windows[0].divisor : 1);
          for_each_vec<V>(p.shape.c, [&](int64_t i, int lanes) {
            V sum(C(0));
            for (int64_t k = 0; k < n; ++k) {
              const V g = load_n(dy + windows[k].offset + i, lanes);
              sum += uniform ? g : g / V(static_cast<C>(windows[k].divisor));
            }
            store_n(dx + at + i, last(sum), lanes);
          });
        },
        [&](int64_t od, int64_t oh) { return mean.outer_count(od, oh); }, columns);
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const AvgPoolKernels avg_pool;
const AvgPoolKernels avg_pool = {forward_rows,   forward_lines, forward_channels_last, forward_plane,
                                 backward_plane, backward_rows, backward_channels_last};
}  // namespace fastnn::cpu::FASTNN_ISA
