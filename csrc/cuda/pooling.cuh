// Windows of pooling on the device: which inputs an output reads, which outputs read an input.
//
// One picture serves both layouts: [images, D, H, W, channels] with the channels side by side. Contiguous
// tensors are images of one channel, N * C of them. I: int32_t where every index and every sum of window
// arguments fits.
#pragma once
#include "cuda/divide.cuh"
#include "fastnn/pooling.h"

namespace fastnn::cuda {

template <class I>
struct PoolAxis {
  I in = 1, out = 1, kernel = 1, stride = 1, padding = 0, dilation = 1;
  bool adaptive = false;
  Divisor<I> by_in, by_out, by_stride, by_dilation;

  PoolAxis() = default;
  PoolAxis(const PoolShape& s, int dim)
      : in(static_cast<I>(s.in[dim])),
        out(static_cast<I>(s.out[dim])),
        kernel(static_cast<I>(s.kernel[dim])),
        stride(static_cast<I>(s.stride[dim])),
        padding(static_cast<I>(s.padding[dim])),
        dilation(static_cast<I>(s.dilation[dim])),
        adaptive(s.adaptive),
        by_in(s.in[dim]),
        by_out(s.out[dim]),
        by_stride(s.stride[dim]),
        by_dilation(s.dilation[dim]) {}

  struct Window {
    I begin;   // input position of tap 0, may be negative
    I lo, hi;  // taps [lo, hi) lie inside the input
  };
  __device__ __forceinline__ I begin(I o) const {
    return adaptive ? by_out.quotient(o * in) : o * stride - padding;
  }
  __device__ __forceinline__ Window window(I o) const {
    const I first = begin(o);
    if (adaptive) return {first, 0, by_out.quotient((o + 1) * in + out - 1) - first};
    const I lo = first < 0 ? by_dilation.quotient(dilation - 1 - first) : 0;
    const I inside = first < in ? by_dilation.quotient(in - first + dilation - 1) : 0;
    const I hi = kernel < inside ? kernel : inside;
    return {first, lo, hi > lo ? hi : lo};
  }
  // What a mean divides by, this dimension's factor. Padding counts on both sides, the overhang that
  // ceil_mode allows beyond it does not.
  __device__ __forceinline__ I count(const Window& w, bool include_pad) const {
    I n = w.hi - w.lo;
    if (!adaptive && include_pad) {
      const I end = w.begin + kernel, last = in + padding;
      n = (end < last ? end : last) - w.begin;
    }
    return n > 1 ? n : 1;
  }

  // The outputs [begin, end) whose window spans input position i.
  struct Range {
    I begin, end;
  };
  __device__ __forceinline__ Range covering(I i) const {
    if (adaptive) return {by_in.quotient(i * out), by_in.quotient((i + 1) * out + in - 1)};
    const I at = i + padding, before = at - (kernel - 1) * dilation;
    const I first = before > 0 ? by_stride.quotient(before + stride - 1) : 0,
            end = by_stride.quotient(at) + 1;
    return {first, end < out ? end : out};
  }
  // The tap at which window o, one of covering(i), reads input position i, or -1 where i falls between two.
  __device__ __forceinline__ I tap(I o, I i) const {
    const I at = i - begin(o), k = by_dilation.quotient(at);
    return k * dilation == at ? k : -1;
  }
};

template <class I>
struct PoolGrid {
  PoolAxis<I> d, h, w;
  I channels = 1, per_thread = 1, groups = 1;  // groups: threads along the channels of a pixel
  Divisor<I> by_groups;

  // N: channels of one thread.
  PoolGrid(const PoolShape& s, int N)
      : d(s, 0),
        h(s, 1),
        w(s, 2),
        channels(static_cast<I>(s.channels_last ? s.c : 1)),
        per_thread(static_cast<I>(N)),
        groups(channels / per_thread),
        by_groups(groups) {}

  struct Pixel {
    I image, d, h, w, channel;
  };
  __device__ __forceinline__ Pixel output_pixel(I item) const {
    return pixel(item, d.out, d.by_out, h.out, h.by_out, w.out, w.by_out);
  }
  __device__ __forceinline__ Pixel input_pixel(I item) const {
    return pixel(item, d.in, d.by_in, h.in, h.by_in, w.in, w.by_in);
  }
  __device__ __forceinline__ I output_at(const Pixel& p) const {
    return output_at(p.image, p.d, p.h, p.w) + p.channel;
  }
  __device__ __forceinline__ I output_at(I image, I od, I oh, I ow) const {
    return (((image * d.out + od) * h.out + oh) * w.out + ow) * channels;
  }
  __device__ __forceinline__ I input_at(I image, I z, I y, I x) const {
    return (((image * d.in + z) * h.in + y) * w.in + x) * channels;
  }
  __device__ __forceinline__ I code(I kd, I kh, I kw) const { return (kd * h.kernel + kh) * w.kernel + kw; }

 private:
  __device__ __forceinline__ Pixel pixel(I item, I D, const Divisor<I>& by_d, I H, const Divisor<I>& by_h,
                                         I W, const Divisor<I>& by_w) const {
    const I pixels = by_groups.quotient(item), rows = by_w.quotient(pixels), planes = by_h.quotient(rows);
    const I image = by_d.quotient(planes), group = item - pixels * groups;
    return {image, planes - image * D, rows - planes * H, pixels - rows * W, group * per_thread};
  }
};

// Codes of N neighbours as they lie in memory: bytes, or words beyond 256 taps.
template <class Word, int N>
struct alignas(N * sizeof(Word) > 16 ? 16 : N * sizeof(Word)) PoolCodes {
  Word v[N];
};

// Whether 32-bit numbers hold every index and every sum that the functions above form.
inline bool pool_fits_32(const PoolShape& s) {
  bool fits = s.inputs() <= kMost32 && s.outputs() <= kMost32;
  for (int dim = 0; dim < 3; ++dim) {
    const int64_t sum =
        s.adaptive ? (s.in[dim] + 1) * (s.out[dim] + 1) + s.in[dim] + s.out[dim]
                   : s.in[dim] + 2 * s.padding[dim] + s.kernel[dim] * s.dilation[dim] + 2 * s.stride[dim];
    fits = fits && sum <= kMost32;
  }
  return fits;
}

// Calls f(I{}) with the index type of the shape.
template <class F>
void visit_pool_index(const PoolShape& s, const F& f) {
  pool_fits_32(s) ? f(int32_t{}) : f(int64_t{});
}

// Channels of one thread: a pack where every pixel begins on a 16-byte border.
template <class T, class... Pointers>
bool pool_is_packed(const PoolShape& s, const Pointers*... p) {
  return s.channels_last && s.c % Pack<T>::N == 0 && (is_aligned(p) && ...);
}

constexpr int kPoolThreads = 256;

}  // namespace fastnn::cuda
