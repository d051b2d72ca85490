// Convolution as a matrix product without im2col: operands that are windows of an image.
//
// Letters as in fastnn/conv.h. A pixel is one position of one image in the batch. A tap is (channel of the
// group, position in the kernel), numbered as the weight lies in memory: positions innermost in [K, C, R],
// channels in channels_last [K, R, C]. So the weight is a matrix [K, taps] in both layouts.
#pragma once
#include "cuda/divide.cuh"
#include "cuda/gemm/tile.cuh"
#include "fastnn/conv.h"

namespace fastnn::cuda {

// Pixels of [n, size...] and how they lie in memory.
struct Pixels {
  int64_t count = 0, plane = 0;  // of the batch, of an image
  Divisor<int64_t> by_plane, by_slice, by_row;
  int64_t slice = 0, row = 0;
  int64_t image = 0, channel = 0, step = 0;  // distances in memory: images, channels, neighbours in a row

  Pixels(int64_t n, const int64_t (&size)[3], int64_t channels, bool last)
      : count(n * size[0] * size[1] * size[2]),
        plane(size[0] * size[1] * size[2]),
        by_plane(plane),
        by_slice(size[1] * size[2]),
        by_row(size[2]),
        slice(size[1] * size[2]),
        row(size[2]),
        image(channels * plane),
        channel(last ? 1 : plane),
        step(last ? channels : 1) {}

  struct Place {
    int64_t n;
    int d, h, w;
  };
  __device__ __forceinline__ Place place(int64_t pixel) const {
    const int64_t n = by_plane.quotient(pixel), in_image = pixel - n * plane;
    const int64_t d = by_slice.quotient(in_image), in_slice = in_image - d * slice;
    const int64_t h = by_row.quotient(in_slice);
    return {n, static_cast<int>(d), static_cast<int>(h), static_cast<int>(in_slice - h * row)};
  }
};

// The taps of a group.
struct Taps {
  int count = 0, inner = 0;  // inner: how many neighbours in memory differ in the inner coordinate alone
  bool last = false;
  int kh = 1, kw = 1;
  Divisor<int> by_inner, by_slice, by_row;

  Taps(const ConvGeometry& g, int64_t channels)
      : last(g.channels_last), kh(static_cast<int>(g.kernel[1])), kw(static_cast<int>(g.kernel[2])) {
    const int64_t positions = g.kernel[0] * g.kernel[1] * g.kernel[2];
    if (channels * positions > kMost32) throw std::invalid_argument("fastnn: too large a convolution kernel");
    count = static_cast<int>(channels * positions);
    inner = static_cast<int>(last ? channels : positions);
    by_inner = Divisor<int>(inner), by_slice = Divisor<int>(kh * kw), by_row = Divisor<int>(kw);
  }

  struct Place {
    int channel, d, h, w;
  };
  __device__ __forceinline__ Place place(int tap) const {
    const int outer = by_inner.quotient(tap), within = tap - outer * inner;
    const int position = last ? outer : within;
    const int d = by_slice.quotient(position), in_slice = position - d * kh * kw,
              h = by_row.quotient(in_slice);
    return {last ? within : outer, d, h, in_slice - h * kw};
  }
};

// Where output pixel o meets input pixel i through a position r of the kernel: i = o stride - padding + r
// dilation. kBack: i is given and o is looked for, which not every i has.
template <bool kBack>
struct Axis {
  int size, stride, padding, dilation;  // size: of the side that is looked for
  Divisor<int> by_stride;

  Axis(const ConvGeometry& g, int d)
      : size(static_cast<int>(kBack ? g.out[d] : g.in[d])),
        stride(static_cast<int>(g.stride[d])),
        padding(static_cast<int>(g.padding[d])),
        dilation(static_cast<int>(g.dilation[d])),
        by_stride(g.stride[d]) {}

  __device__ __forceinline__ int start(int given) const {
    return kBack ? given + padding : given * stride - padding;
  }
  // Negative where there is none.
  __device__ __forceinline__ int at(int start, int r) const {
    if constexpr (!kBack) {
      const int i = start + r * dilation;
      return i < size ? i : -1;
    } else {
      const int scaled = start - r * dilation;
      if (scaled < 0) return -1;
      const int o = by_stride.quotient(scaled);
      return o * stride == scaled && o < size ? o : -1;
    }
  }
};

// What the sources below have in common: an image of `image` pixels, windows around `pixels`.
template <class T, bool kBack>
struct Windows {
  const T* data;
  Pixels image, pixels;
  Taps taps;
  Axis<kBack> d, h, w;
  int64_t group;  // channels

  // The image is the input, windows are those of output pixels; kBack, the other way round.
  Windows(const ConvGeometry& g, const void* data)
      : data(static_cast<const T*>(data)),
        image(g.n, kBack ? g.out : g.in, kBack ? g.k : g.c, g.channels_last),
        pixels(g.n, kBack ? g.in : g.out, 1, g.channels_last),
        taps(g, (kBack ? g.k : g.c) / g.g),
        d(g, 0),
        h(g, 1),
        w(g, 2),
        group((kBack ? g.k : g.c) / g.g) {}

  bool is_packed() const {
    return image.channel == 1 && group % Pack<T>::N == 0 && image.step % Pack<T>::N == 0 && is_aligned(data);
  }

  struct Corner {  // of a window
    int64_t n;
    int d, h, w;
  };
  __device__ __forceinline__ Corner corner(int64_t pixel) const {
    const Pixels::Place p = pixels.place(pixel);
    return {p.n, d.start(p.d), h.start(p.h), w.start(p.w)};
  }
  // Where the tap of the window lies, or null outside of the image.
  __device__ __forceinline__ const T* at(const Corner& c, const Taps::Place& t) const {
    const int id = d.at(c.d, t.d), ih = h.at(c.h, t.h), iw = w.at(c.w, t.w);
    if ((id | ih | iw) < 0) return nullptr;
    const int64_t pixel = id * image.slice + ih * image.row + iw;
    return data + c.n * image.image + (blockIdx.z * group + t.channel) * image.channel + pixel * image.step;
  }
  // One number, or P of neighbouring channels, to shared memory.
  template <bool kPacked>
  __device__ __forceinline__ void copy(T* to, const T* from) const {
    const T* any = from == nullptr ? data : from;
    if constexpr (kPacked) {
      copy_async<kPackBytes>(to, any, from != nullptr);
    } else {
      copy_number(to, any, from != nullptr);
    }
  }
};

// Rows are pixels, depth goes through taps: x of forward, dy of backward-data.
template <class T, bool kBack, bool kPacked_>
struct WindowSource {
  static constexpr bool kAlongDepth = true, kPacked = kPacked_;
  Windows<T, kBack> windows;

  struct Fixed {
    typename Windows<T, kBack>::Corner corner;
    bool exists;
  };
  __device__ __forceinline__ Fixed fixed(int64_t pixel) const {
    const bool exists = pixel < windows.pixels.count;
    return {windows.corner(exists ? pixel : 0), exists};
  }
  __device__ __forceinline__ void fetch(T* to, const Fixed& f, int64_t first) const {
    const int tap = static_cast<int>(first);
#pragma unroll
    for (int j = 0; j < (kPacked ? 1 : Pack<T>::N); ++j) {
      const bool exists = f.exists && tap + j < windows.taps.count;
      windows.template copy<kPacked>(to + j,
                                     exists ? windows.at(f.corner, windows.taps.place(tap + j)) : nullptr);
    }
  }
};

// Rows are taps, depth goes through pixels: x of backward-weight.
template <class T, bool kPacked_>
struct TapSource {
  static constexpr bool kAlongDepth = false, kPacked = kPacked_;
  Windows<T, false> windows;

  struct Fixed {
    int tap;
  };
  __device__ __forceinline__ Fixed fixed(int64_t tap) const { return {static_cast<int>(tap)}; }
  __device__ __forceinline__ void fetch(T* to, const Fixed& f, int64_t pixel) const {
    const bool exists = pixel < windows.pixels.count;
    const auto corner = windows.corner(exists ? pixel : 0);
#pragma unroll
    for (int j = 0; j < (kPacked ? 1 : Pack<T>::N); ++j) {
      const bool both = exists && f.tap + j < windows.taps.count;
      windows.template copy<kPacked>(to + j,
                                     both ? windows.at(corner, windows.taps.place(f.tap + j)) : nullptr);
    }
  }
};

// Rows are channels, depth goes through pixels of planes [n, channels, pixels]: dy of backward-weight. (Of
// channels_last it is a matrix.)
template <class T>
struct PlaneSource {
  static constexpr bool kAlongDepth = false, kPacked = false;
  const T* data;
  int64_t channels, total, plane, pixels;  // channels of a group, of all
  Divisor<int64_t> by_plane;

  struct Fixed {
    int64_t channel;
  };
  __device__ __forceinline__ Fixed fixed(int64_t channel) const { return {channel}; }
  __device__ __forceinline__ void fetch(T* to, const Fixed& f, int64_t pixel) const {
    const int64_t n = by_plane.quotient(pixel), first = n * total + blockIdx.z * channels + f.channel;
    const T* from = data + first * plane + (pixel - n * plane);
#pragma unroll
    for (int j = 0; j < Pack<T>::N; ++j) {
      const bool exists = pixel < pixels && f.channel + j < channels;
      copy_number(to + j, exists ? from + j * plane : data, exists);
    }
  }
};

// Rows are input channels of the group, depth goes through taps of output channels: the weight of
// backward-data. Packed along the rows, which channels_last has.
template <class T, bool kPacked_>
struct BackWeightSource {
  static constexpr bool kAlongDepth = false, kPacked = kPacked_;
  const T* data;
  Taps taps;
  int64_t rows, positions, outputs;  // outputs: channels of the group

  BackWeightSource(const ConvGeometry& g, const void* data)
      : data(static_cast<const T*>(data)),
        taps(g, g.k / g.g),
        rows(g.c / g.g),
        positions(g.kernel[0] * g.kernel[1] * g.kernel[2]),
        outputs(g.k / g.g) {}
  bool is_packed() const { return taps.last && rows % Pack<T>::N == 0 && is_aligned(data); }

  struct Fixed {
    int64_t row;
  };
  __device__ __forceinline__ Fixed fixed(int64_t row) const { return {row}; }
  __device__ __forceinline__ void fetch(T* to, const Fixed& f, int64_t tap) const {
    const int outer = taps.by_inner.quotient(static_cast<int>(tap));
    const int within = static_cast<int>(tap) - outer * taps.inner;
    const int64_t k = blockIdx.z * outputs + (taps.last ? within : outer), r = taps.last ? outer : within;
    const T* from = data + k * rows * positions + (taps.last ? r * rows + f.row : f.row * positions + r);
    const bool exists = tap < taps.count;
    if constexpr (kPacked) {
      copy_async<kPackBytes>(to, exists && f.row < rows ? from : data, exists && f.row < rows);
    } else {
#pragma unroll
      for (int j = 0; j < Pack<T>::N; ++j) {
        const bool both = exists && f.row + j < rows;
        copy_number(to + j, both ? from + j * (taps.last ? 1 : positions) : data, both);
      }
    }
  }
};

// c [pixels, channels of a group] into planes [n, channels, pixels]. (Into channels_last it is a matrix.)
template <class T>
struct PlaneOut {
  using C = Compute<T>;
  static constexpr int kNumbers = 1;
  static constexpr bool kAlongRows = true;
  T* y;
  const T* bias;                   // or null
  int64_t channels, total, plane;  // channels of a group, of all
  Divisor<int64_t> by_plane;

  __device__ __forceinline__ void put(int64_t pixel, int64_t col, const C (&v)[1]) const {
    const int64_t n = by_plane.quotient(pixel), channel = blockIdx.z * channels + col;
    const C add = bias == nullptr ? C(0) : load(bias[channel]);
    y[(n * total + channel) * plane + (pixel - n * plane)] = store<T>(v[0] + add);
  }
};

}  // namespace fastnn::cuda
