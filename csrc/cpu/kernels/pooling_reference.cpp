// Pooling as its definition reads, one element at a time, for every shape and layout: what the fast
// algorithms are tested against, and what runs where none of them applies. Gradients are gathered, so that
// nothing is zeroed first.
#include "cpu/kernels/pooling.h"
#include "cpu/simd/vec.h"

namespace {

using namespace fastnn;  // the Params

// Element (plane, d, h, w) of an array with the given extents.
struct Addresses {
  int64_t plane, d, h, w;  // strides, `plane` within an image
  int64_t image, channels;
  Addresses(const PoolShape& s, const int64_t* size) {
    w = s.channels_last ? s.c : 1;
    h = size[2] * w;
    d = size[1] * h;
    plane = s.channels_last ? 1 : size[0] * d;
    image = s.c * size[0] * size[1] * size[2];
    channels = s.c;
  }
  int64_t base(int64_t p) const { return p / channels * image + p % channels * plane; }
  int64_t at(int64_t i, int64_t j, int64_t k) const { return i * d + j * h + k * w; }
};

template <class F>
void for_each_point(const int64_t* size, const F& f) {
  for (int64_t d = 0; d < size[0]; ++d)
    for (int64_t h = 0; h < size[1]; ++h)
      for (int64_t w = 0; w < size[2]; ++w) f(d, h, w);
}

// f(tap, d, h, w) for the inputs that window (od, oh, ow) reads.
template <class F>
void for_each_tap(const PoolShape& s, int64_t od, int64_t oh, int64_t ow, const F& f) {
  const PoolWindow wd = pool_window(s, 0, od), wh = pool_window(s, 1, oh), ww = pool_window(s, 2, ow);
  for (int64_t kd = wd.lo; kd < wd.hi; ++kd)
    for (int64_t kh = wh.lo; kh < wh.hi; ++kh)
      for (int64_t kw = ww.lo; kw < ww.hi; ++kw)
        f((kd * s.kernel[1] + kh) * s.kernel[2] + kw, wd.begin + kd * s.dilation[0],
          wh.begin + kh * s.dilation[1], ww.begin + kw * s.dilation[2]);
}

// f(tap, od, oh, ow) for the windows that read input (d, h, w).
template <class F>
void for_each_window(const PoolShape& s, int64_t d, int64_t h, int64_t w, const F& f) {
  const PoolRange ds = pool_covering(s, 0, d), hs = pool_covering(s, 1, h), ws = pool_covering(s, 2, w);
  for (int64_t od = ds.begin; od < ds.end; ++od)
    for (int64_t oh = hs.begin; oh < hs.end; ++oh)
      for (int64_t ow = ws.begin; ow < ws.end; ++ow) {
        const int64_t kd = pool_tap(s, 0, od, d), kh = pool_tap(s, 1, oh, h), kw = pool_tap(s, 2, ow, w);
        if (kd >= 0 && kh >= 0 && kw >= 0) f((kd * s.kernel[1] + kh) * s.kernel[2] + kw, od, oh, ow);
      }
}

bool byte_codes(const PoolShape& s) {
  return tap_count(s) <= 256;
}

template <class P>
int64_t divisor(const P& p, int64_t od, int64_t oh, int64_t ow) {
  if (p.divisor) return p.divisor;
  return pool_count(p.shape, 0, od, p.count_include_pad) * pool_count(p.shape, 1, oh, p.count_include_pad) *
         pool_count(p.shape, 2, ow, p.count_include_pad);
}

void max_forward(const MaxPoolParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&]<class T>(T) {
    const PoolShape& s = p.shape;
    const Addresses in(s, s.in), out(s, s.out);
    for (int64_t plane = begin; plane < end; ++plane)
      for_each_point(s.out, [&](int64_t od, int64_t oh, int64_t ow) {
        const T* x = static_cast<const T*>(p.x) + in.base(plane);
        Compute<T> best = -static_cast<Compute<T>>(__builtin_inf());
        int64_t code = -1;
        for_each_tap(s, od, oh, ow, [&](int64_t tap, int64_t d, int64_t h, int64_t w) {
          const Compute<T> v = to_compute(x[in.at(d, h, w)]);
          if (code < 0 || v > best || v != v) code = tap, best = v;
        });
        const int64_t at = out.base(plane) + out.at(od, oh, ow);
        static_cast<T*>(p.y)[at] = from_compute<T>(best);
        if (code < 0) code = 0;  // a dilated window that misses the input altogether
        if (p.codes && byte_codes(s)) static_cast<uint8_t*>(p.codes)[at] = static_cast<uint8_t>(code);
        if (p.codes && !byte_codes(s)) static_cast<int32_t*>(p.codes)[at] = static_cast<int32_t>(code);
      });
  });
}

void max_backward(const MaxPoolBackwardParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&]<class T>(T) {
    const PoolShape& s = p.shape;
    const Addresses in(s, s.in), out(s, s.out);
    for (int64_t plane = begin; plane < end; ++plane)
      for_each_point(s.in, [&](int64_t d, int64_t h, int64_t w) {
        Compute<T> sum = 0;
        for_each_window(s, d, h, w, [&](int64_t tap, int64_t od, int64_t oh, int64_t ow) {
          const int64_t at = out.base(plane) + out.at(od, oh, ow);
          const int64_t code = byte_codes(s) ? static_cast<const uint8_t*>(p.codes)[at]
                                             : static_cast<const int32_t*>(p.codes)[at];
          if (code == tap) sum += to_compute(static_cast<const T*>(p.dy)[at]);
        });
        static_cast<T*>(p.dx)[in.base(plane) + in.at(d, h, w)] = from_compute<T>(sum);
      });
  });
}

void avg_forward(const AvgPoolParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&]<class T>(T) {
    const PoolShape& s = p.shape;
    const Addresses in(s, s.in), out(s, s.out);
    for (int64_t plane = begin; plane < end; ++plane)
      for_each_point(s.out, [&](int64_t od, int64_t oh, int64_t ow) {
        const T* x = static_cast<const T*>(p.x) + in.base(plane);
        Compute<T> sum = 0;
        for_each_tap(s, od, oh, ow,
                     [&](int64_t, int64_t d, int64_t h, int64_t w) { sum += to_compute(x[in.at(d, h, w)]); });
        static_cast<T*>(p.y)[out.base(plane) + out.at(od, oh, ow)] =
            from_compute<T>(sum / static_cast<Compute<T>>(divisor(p, od, oh, ow)));
      });
  });
}

void avg_backward(const AvgPoolBackwardParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&]<class T>(T) {
    const PoolShape& s = p.shape;
    const Addresses in(s, s.in), out(s, s.out);
    for (int64_t plane = begin; plane < end; ++plane)
      for_each_point(s.in, [&](int64_t d, int64_t h, int64_t w) {
        Compute<T> sum = 0;
        for_each_window(s, d, h, w, [&](int64_t, int64_t od, int64_t oh, int64_t ow) {
          const T g = static_cast<const T*>(p.dy)[out.base(plane) + out.at(od, oh, ow)];
          sum += to_compute(g) / static_cast<Compute<T>>(divisor(p, od, oh, ow));
        });
        static_cast<T*>(p.dx)[in.base(plane) + in.at(d, h, w)] = from_compute<T>(sum);
      });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const PoolReferenceKernels pool_reference;
const PoolReferenceKernels pool_reference = {max_forward, max_backward, avg_forward, avg_backward};
}  // namespace fastnn::cpu::FASTNN_ISA
