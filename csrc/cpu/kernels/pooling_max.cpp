// Max pooling: y[o] = the largest x of the window, a NaN before everything; the code is its tap: the first of
// equals, the last of several NaN. Forward: see pooling_rows.h; with codes every tap is visited, because the
// order of ties is that of the whole window.
//
// Backward: dx[i] = sum of dy[o] over the windows o whose code is the tap that reads i. Rows of dy and codes
// are staged with padding, and each row of dx gathers: a compare and a masked add per tap, written once,
// nothing zeroed or scattered. Where windows do not overlap that is one tap per dx.
#include "cpu/kernels/pooling_rows.h"

namespace {

using fastnn::MaxPoolBackwardParams;
using fastnn::MaxPoolParams;

template <class C>
using Code = typename CodeOf<C>::type;

// f(K{}) with the type of a code.
template <class F>
FASTNN_INLINE void with_code_type(const PoolShape& s, const F& f) {
  tap_count(s) <= 256 ? f(uint8_t{}) : f(int32_t{});
}

// y[i] = max over t of taps[t][i], codes[i] = that tap's code. Where nothing exceeds -inf the code is the
// first tap inside the input: tap_codes[0] + first[i].
template <class S, class T, class K, class Count>
FASTNN_INLINE void max_taps(const S* const* taps, const int32_t* tap_codes, Count n_taps, int64_t n,
                            const Code<Compute<T>>* first, T* y, K* codes) {
  using C = Compute<T>;
  using V = Vec<C>;
  using Int = typename V::IntRaw;
  for_each_vec<V>(n, [&](int64_t i, int lanes) {
    V best(Max::neutral<C>());
    Int code = Int{} + static_cast<Code<C>>(tap_codes[0]);
    if (first) code += load_wide<C>(first + i, V::N);
    for (int64_t t = 0; t < n_taps; ++t) {
      const V v = load_n(taps[t] + i, lanes);
      const Mask<C> better = (v > best) | isnan(v);
      best = select(better, v, best);
      code = better.v ? Int{} + static_cast<Code<C>>(tap_codes[t]) : code;
    }
    store_n(y + i, best, lanes);
    store_narrow<C>(codes + i, code, lanes);
  });
}

template <class T, class K>
void forward_rows_with_codes(const PoolShape& s, const T* x, T* y, K* codes, const PoolBlocks& b,
                             int64_t begin, int64_t end, PoolScratch scratch) {
  using C = Compute<T>;
  const ForwardLines<C> lines(s, b, true, scratch);
  const int64_t slot_size = s.stride[2] * lines.length;
  Code<C>* first = reinterpret_cast<Code<C>*>(lines.counts);
  for (int64_t kw = 0; kw < s.kernel[2]; ++kw) {
    const ColumnTap tap = column_tap(s, kw);
    lines.tap_offsets[kw] = tap.residue * lines.length + tap.shift - lines.min_shift;
  }
  int64_t prepared = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.out[1], s.out[2]);
    const int64_t cols = u.col_end - u.col_begin;
    if (u.col_block != prepared) {
      prepared = u.col_block;
      fill(lines.stage, lines.slots * slot_size, Max::neutral<C>());
      for (int64_t i = 0; i < cols; ++i)
        first[i] = static_cast<Code<C>>(pool_window(s, 2, u.col_begin + i).lo);
    }
    const StagedColumns at = staged_columns(s, lines, u);
    fill(lines.held, lines.slots, int64_t{-1});
    const T* plane = x + u.plane * plane_inputs(s);
    const int64_t out = u.plane * plane_outputs(s) + u.d * s.out[1] * s.out[2] + u.col_begin;
    const PoolWindow wd = pool_window(s, 0, u.d);
    for (int64_t oh = u.row_begin; oh < u.row_end; ++oh) {
      const PoolWindow wh = pool_window(s, 1, oh);
      int64_t n = 0;
      for (int64_t kd = wd.lo; kd < wd.hi; ++kd)
        for (int64_t kh = wh.lo; kh < wh.hi; ++kh) {
          const int64_t h = wh.begin + kh * s.dilation[1],
                        slot = kd * lines.extent + floor_mod(h, lines.extent);
          C* stage = lines.stage + slot * slot_size;
          if (lines.held[slot] != h) {
            lines.held[slot] = h;
            const T* row = plane + ((wd.begin + kd * s.dilation[0]) * s.in[1] + h) * s.in[2];
            stage_rows<Max>(&row, Known<1>{}, at, stage, lines.line);
          }
          const int64_t code = (kd * s.kernel[1] + kh) * s.kernel[2];
          for (int64_t kw = 0; kw < s.kernel[2]; ++kw, ++n) {
            lines.taps[n] = stage + lines.tap_offsets[kw];
            lines.tap_codes[n] = static_cast<int32_t>(code + kw);
          }
        }
      const int64_t offset = out + oh * s.out[2];
      with_window(n, [&](auto count) {
        max_taps<C>(lines.taps, lines.tap_codes, count, cols, first, y + offset, codes + offset);
      });
    }
  }
}

void forward_rows(const MaxPoolParams& p, const PoolBlocks& b, int64_t begin, int64_t end, char* scratch) {
  with_dtype(p, p.x, p.y, [&]<class T>(const T* x, T* y) {
    if (!p.codes) return fold_forward_rows<Max>(p.shape, x, y, b, begin, end, PoolScratch(scratch), Keep{});
    with_code_type(p.shape, [&]<class K>(K) {
      forward_rows_with_codes(p.shape, x, y, static_cast<K*>(p.codes), b, begin, end, PoolScratch(scratch));
    });
  });
}

// Each column keeps its largest value and the row of the window, kd * KH + kh, that it came from. Of the
// columns the largest wins, then the first row, then the first column; of several NaN the last row, then the
// last column.
template <class T, class K>
void forward_lines_with_codes(const PoolShape& s, const T* x, T* y, K* codes, const PoolBlocks& b,
                              int64_t begin, int64_t end, PoolScratch scratch) {
  using C = Compute<T>;
  C* line = scratch.take<C>(s.in[2] + kSlack);
  const T** rows = scratch.take<const T*>(s.kernel[0] * s.kernel[1]);
  int32_t* row_codes = scratch.take<int32_t>(s.kernel[0] * s.kernel[1]);
  int32_t* won = scratch.take<int32_t>(s.in[2] + kSlack);
  const PoolWindow* windows = column_windows(s, scratch);
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.out[1], s.out[2]);
    const T* plane = x + u.plane * plane_inputs(s);
    const int64_t out = u.plane * plane_outputs(s) + u.d * s.out[1] * s.out[2];
    for (int64_t oh = u.row_begin; oh < u.row_end; ++oh) {
      const int64_t n_rows = window_rows(s, plane, u.d, oh, rows, row_codes);
      max_taps(rows, row_codes, n_rows, s.in[2], static_cast<const Code<C>*>(nullptr), line, won);
      for (int64_t ow = u.col_begin; ow < u.col_end; ++ow) {
        const PoolWindow w = windows[ow];
        int64_t column = w.lo, from = w.begin + w.lo * s.dilation[2];
        C best = line[from];
        int32_t row = won[from];
        for (int64_t k = w.lo + 1; k < w.hi; ++k) {
          from += s.dilation[2];
          const C v = line[from];
          const int32_t r = won[from];
          const bool better = v != v ? best == best || r >= row : v > best || (v == best && r < row);
          if (better) best = v, row = r, column = k;
        }
        const int64_t at = out + oh * s.out[2] + ow;
        y[at] = from_compute<T>(best);
        codes[at] = static_cast<K>(row * s.kernel[2] + column);
      }
    }
  }
}

struct KeepScalar {
  FASTNN_INLINE int64_t outer_count(int64_t, int64_t) const { return 1; }
  template <class C>
  FASTNN_INLINE C operator()(C v, int64_t, int64_t, int64_t) const {
    return v;
  }
};

void forward_lines(const MaxPoolParams& p, const PoolBlocks& b, int64_t begin, int64_t end, char* scratch) {
  with_dtype(p, p.x, p.y, [&]<class T>(const T* x, T* y) {
    if (!p.codes)
      return fold_forward_lines<Max>(p.shape, x, y, b, begin, end, PoolScratch(scratch), KeepScalar{});
    with_code_type(p.shape, [&]<class K>(K) {
      forward_lines_with_codes(p.shape, x, y, static_cast<K*>(p.codes), b, begin, end, PoolScratch(scratch));
    });
  });
}

void forward_channels_last(const MaxPoolParams& p, const PoolBlocks& b, int64_t begin, int64_t end,
                           char* scratch) {
  with_dtype(p, p.x, p.y, [&]<class T>(const T* x, T* y) {
    using C = Compute<T>;
    const int64_t channels = p.shape.c;
    with_code_type(p.shape, [&]<class K>(K) {
      for_each_output_pixel(
          p.shape, x, b, begin, end, PoolScratch(scratch),
          [&](const T** taps, const int32_t* tap_codes, int64_t n, int64_t, int64_t, int64_t, int64_t at) {
            if (!p.codes) {
              return with_window(n,
                                 [&](auto count) { fold_taps<Max>(taps, count, channels, y + at, Keep{}); });
            }
            with_window(n, [&](auto count) {
              max_taps(taps, tap_codes, count, channels, static_cast<const Code<C>*>(nullptr), y + at,
                       static_cast<K*>(p.codes) + at);
            });
          });
    });
  });
}

// A tap of the backward gather: it passes g[i] on where code[i] is `value`.
template <class C>
struct BackwardTap {
  const C* g;
  const Code<C>* code;
  Code<C> value;
};

template <class C, class Count>
FASTNN_INLINE Vec<C> gather_taps(const BackwardTap<C>* taps, Count n, int64_t i) {
  using V = Vec<C>;
  V sum(C(0));
  for (int64_t t = 0; t < n; ++t) {
    const Mask<C> hit{load_wide<C>(taps[t].code + i, V::N) == taps[t].value};
    sum += select(hit, load(taps[t].g + i), V(C(0)));
  }
  return sum;
}

template <class T, class K>
void backward_rows_of(const PoolShape& s, const T* dy, const K* codes, T* dx, const PoolBlocks& b,
                      int64_t begin, int64_t end, PoolScratch scratch) {
  using C = Compute<T>;
  using V = Vec<C>;
  const BackwardLines<C> lines(s, b, false, scratch);
  BackwardTap<C>* taps = scratch.take<BackwardTap<C>>(lines.slots * s.kernel[2]);
  int64_t* tap_begin = scratch.take<int64_t>(s.stride[2] + 1);
  const C** staged = scratch.take<const C*>(lines.slots);
  Code<C>* base = scratch.take<Code<C>>(lines.slots);
  const int64_t stride = s.stride[2], groups = ceil_div(s.in[2], stride);
  lines.sort_taps(s);
  int64_t prepared = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const PoolUnit u = pool_unit(b, unit, s.in[1], groups);
    if (u.col_block != prepared) {
      prepared = u.col_block;
      fill(lines.stage, lines.slots * lines.length, C(0));
      fill(lines.codes, lines.slots * lines.length, Code<C>(-1));
    }
    fill(lines.held, lines.slots, int64_t{-1});
    const int64_t dy_plane = u.plane * plane_outputs(s);
    T* dx_plane = dx + u.plane * plane_inputs(s) + u.d * s.in[1] * s.in[2] + u.col_begin * stride;
    const int64_t width = smaller(s.in[2], u.col_end * stride) - u.col_begin * stride;
    const PoolRange o = lines.outputs(s, u), ds = pool_covering(s, 0, u.d);
    const int64_t position = o.begin - (u.col_begin - lines.max_shift);
    for (int64_t h = u.row_begin; h < u.row_end; ++h) {
      const PoolRange hs = pool_covering(s, 1, h);
      int64_t n = 0;  // rows of dy that read this row
      for (int64_t od = ds.begin; od < ds.end; ++od) {
        const int64_t kd = pool_tap(s, 0, od, u.d);
        for (int64_t oh = hs.begin; oh < hs.end && kd >= 0; ++oh) {
          const int64_t kh = pool_tap(s, 1, oh, h);
          if (kh < 0) continue;
          const int64_t slot = lines.slot(od, oh), row = od * s.out[1] + oh;
          C* stage = lines.stage + slot * lines.length;
          if (lines.held[slot] != row) {
            lines.held[slot] = row;
            const int64_t from = dy_plane + row * s.out[2] + o.begin;
            Code<C>* code = lines.codes + slot * lines.length + position;
            for_each_vec<V>(o.end - o.begin, [&](int64_t i, int lanes) {
              store(stage + position + i, keep_lanes(load_n(dy + from + i, lanes), lanes, V(C(0))));
              store_narrow<C>(code + i, load_wide<C>(codes + from + i, lanes), V::N);
            });
          }
          staged[n] = stage;
          base[n++] = static_cast<Code<C>>((kd * s.kernel[1] + kh) * s.kernel[2]);
        }
      }
      int64_t count = 0;
      for (int64_t r = 0; r < stride; ++r) {
        tap_begin[r] = count;
        for (int64_t row = 0; row < n; ++row)
          for (int64_t t = lines.residue_begin[r]; t < lines.residue_begin[r + 1]; ++t) {
            const int64_t kw = lines.residue_taps[t], offset = lines.tap_offsets[t];
            taps[count++] = {staged[row] + offset, lines.codes + (staged[row] - lines.stage) + offset,
                             static_cast<Code<C>>(base[row] + kw)};
          }
      }
      tap_begin[stride] = count;
      T* out = dx_plane + h * s.in[2];
      const auto store_row = [&](auto per_residue) {
        store_columns(stride, width, out, lines.line, lines.length, [&](int64_t r, int64_t q) {
          return gather_taps(taps + tap_begin[r], per_residue(r), q);
        });
      };
      if (count == stride && n == 1 && s.kernel[2] == stride && s.dilation[2] == 1) {
        store_row([](int64_t) { return Known<1>{}; });
      } else {
        store_row([&](int64_t r) { return tap_begin[r + 1] - tap_begin[r]; });
      }
    }
  }
}

// Large windows: few outputs per input, so the plane is zeroed and each output adds to its one input. `sums`
// is dx itself, or a plane of floats where dx is narrower than what it sums in.
template <class T, class K>
void backward_scatter_of(const PoolShape& s, const T* dy, const K* codes, T* dx, int64_t begin, int64_t end,
                         PoolScratch scratch) {
  using C = Compute<T>;
  constexpr bool kInPlace = __is_same(T, C);
  const int64_t inputs = plane_inputs(s);
  int32_t* offsets = scratch.take<int32_t>(tap_count(s));
  int64_t* columns = scratch.take<int64_t>(s.out[2]);
  C* sums = kInPlace ? nullptr : scratch.take<C>(inputs + kSlack);
  int32_t* offset = offsets;
  for (int64_t kd = 0; kd < s.kernel[0]; ++kd)
    for (int64_t kh = 0; kh < s.kernel[1]; ++kh)
      for (int64_t kw = 0; kw < s.kernel[2]; ++kw)
        *offset++ = static_cast<int32_t>((kd * s.dilation[0] * s.in[1] + kh * s.dilation[1]) * s.in[2] +
                                         kw * s.dilation[2]);
  for (int64_t ow = 0; ow < s.out[2]; ++ow) columns[ow] = pool_window(s, 2, ow).begin;
  for (int64_t plane = begin; plane < end; ++plane) {
    if constexpr (kInPlace) sums = dx + plane * inputs;
    fill(sums, inputs, C(0));
    int64_t at = plane * plane_outputs(s);
    for (int64_t od = 0; od < s.out[0]; ++od)
      for (int64_t oh = 0; oh < s.out[1]; ++oh) {
        const int64_t corner =
            (pool_window(s, 0, od).begin * s.in[1] + pool_window(s, 1, oh).begin) * s.in[2];
        for (int64_t ow = 0; ow < s.out[2]; ++ow, ++at)
          sums[corner + columns[ow] + offsets[codes[at]]] += to_compute(dy[at]);
      }
    if constexpr (!kInPlace)
      for_each_vec<Vec<C>>(inputs,
                           [&](int64_t i, int n) { store_n(dx + plane * inputs + i, load(sums + i), n); });
  }
}

void backward_scatter(const MaxPoolBackwardParams& p, int64_t begin, int64_t end, char* scratch) {
  with_dtype(p, p.dy, p.dx, [&]<class T>(const T* dy, T* dx) {
    with_code_type(p.shape, [&]<class K>(K) {
      backward_scatter_of(p.shape, dy, static_cast<const K*>(p.codes), dx, begin, end, PoolScratch(scratch));
    });
  });
}

void backward_rows(const MaxPoolBackwardParams& p, const PoolBlocks& b, int64_t begin, int64_t end,
                   char* scratch) {
  with_dtype(p, p.dy, p.dx, [&]<class T>(const T* dy, T* dx) {
    with_code_type(p.shape, [&]<class K>(K) {
      backward_rows_of(p.shape, dy, static_cast<const K*>(p.codes), dx, b, begin, end, PoolScratch(scratch));
    });
  });
}

void backward_channels_last(const MaxPoolBackwardParams& p, const PoolBlocks& b, int64_t begin, int64_t end,
                            char* scratch) {
  with_dtype(p, p.dy, p.dx, [&]<class T>(const T* dy, T* dx) {
    using C = Compute<T>;
    using V = Vec<C>;
    with_code_type(p.shape, [&]<class K>(K) {
      const K* codes = static_cast<const K*>(p.codes);
      for_each_input_pixel(
          p.shape, b, begin, end, PoolScratch(scratch),
          [&](const CoveringWindow* windows, int64_t n, int64_t at) {
            with_window(n, [&](auto count) {
              for_each_vec<V>(p.shape.c, [&](int64_t i, int lanes) {
                V sum(C(0));
                for (int64_t k = 0; k < count; ++k) {
                  const int64_t from = windows[k].offset + i;
                  const Mask<C> hit{load_wide<C>(codes + from, lanes) ==
                                    static_cast<Code<C>>(windows[k].tap)};
                  sum += select(hit, load_n(dy + from, lanes), V(C(0)));
                }
                store_n(dx + at + i, sum, lanes);
              });
            });
          },
          [](int64_t, int64_t) { return int64_t{1}; }, nullptr);
    });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const MaxPoolKernels max_pool;
const MaxPoolKernels max_pool = {forward_rows,  forward_lines,    forward_channels_last,
                                 backward_rows, backward_scatter, backward_channels_last};
}  // namespace fastnn::cpu::FASTNN_ISA
