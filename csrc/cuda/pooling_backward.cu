// Pooling backward: every input gathers from the windows that read it, in their order. Nothing is zeroed
// first, nothing added atomically, so the bits are the same in every run.
//
// Bound by memory. Channels last: a thread has a pack of channels of one input. Contiguous: a thread has a
// pack of inputs in a row of memory; it goes once over the windows that reach them, each giving its value to
// a range of the row (a mean) or to one place (a maximum), and writes 16 bytes, wherever the rows of the
// picture end.
#include "cuda/pooling.cuh"
#include "cuda/pooling.h"

namespace fastnn::cuda {
namespace {

// What window (od, oh, ow) gives, where the taps kd and kh that read this row of inputs are known.
template <class T, class I>
struct MaxGradient {
  using C = Compute<T>;
  const T* dy;
  const uint8_t* bytes;  // codes, one of the two
  const int32_t* words;

  // To the input that tap (kd, kh, kw) reads, of N channels beginning at `at`.
  template <int N>
  __device__ __forceinline__ void add(C (&sum)[N], I at, const PoolGrid<I>& g, I, I, I, I kd, I kh,
                                      I kw) const {
    const int32_t code = static_cast<int32_t>(g.code(kd, kh, kw));
    if constexpr (N == 1) {
      if ((bytes != nullptr ? bytes[at] : words[at]) == code) sum[0] += load(dy[at]);
    } else {
      const Pack<T> pack = load_pack(dy + at);
      PoolCodes<uint8_t, N> codes{};
      if (bytes != nullptr) codes = *reinterpret_cast<const PoolCodes<uint8_t, N>*>(bytes + at);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const int32_t found = bytes != nullptr ? codes.v[j] : words[at + j];
        sum[j] += found == code ? load(pack.v[j]) : C(0);
      }
    }
  }

  // To the positions [lo, hi) of a row.
  struct Share {
    C value;
    I lo, hi;
  };
  __device__ __forceinline__ Share share(I at, const PoolGrid<I>& g, I, I, I ow, I kd, I kh) const {
    const I kw = static_cast<I>(bytes != nullptr ? bytes[at] : words[at]) - g.code(kd, kh, 0);
    const I position = g.w.begin(ow) + kw * g.w.dilation;
    const bool here = kw >= 0 && kw < g.w.kernel;
    return {load(dy[at]), position, here ? position + 1 : position};
  }
};

template <class T, class I>
struct MeanGradient {
  using C = Compute<T>;
  const T* dy;
  I divisor;  // 0: the number of elements in the window
  bool include_pad;

  __device__ __forceinline__ C divide_by(const PoolGrid<I>& g, I od, I oh, I ow) const {
    if (divisor != 0) return static_cast<C>(divisor);
    return static_cast<C>(g.d.count(g.d.window(od), include_pad) * g.h.count(g.h.window(oh), include_pad) *
                          g.w.count(g.w.window(ow), include_pad));
  }
  template <int N>
  __device__ __forceinline__ void add(C (&sum)[N], I at, const PoolGrid<I>& g, I od, I oh, I ow, I, I,
                                      I) const {
    const C by = divide_by(g, od, oh, ow);
    if constexpr (N == 1) {
      sum[0] += load(dy[at]) / by;
    } else {
      const Pack<T> pack = load_pack(dy + at);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += load(pack.v[j]) / by;
    }
  }
  using Share = typename MaxGradient<T, I>::Share;
  __device__ __forceinline__ Share share(I at, const PoolGrid<I>& g, I od, I oh, I ow, I, I) const {
    const auto w = g.w.window(ow);
    return {load(dy[at]) / divide_by(g, od, oh, ow), w.begin + w.lo, w.begin + w.hi};
  }
};

// f(od, oh, kd, kh) for the windows of D and H that read row (d, h).
template <class I, class F>
__device__ __forceinline__ void each_row_of_windows(const PoolGrid<I>& g, I d, I h, const F& f) {
  const auto ds = g.d.covering(d), hs = g.h.covering(h);
  for (I od = ds.begin; od < ds.end; ++od) {
    const I kd = g.d.tap(od, d);
    if (kd < 0) continue;
    for (I oh = hs.begin; oh < hs.end; ++oh) {
      const I kh = g.h.tap(oh, h);
      if (kh >= 0) f(od, oh, kd, kh);
    }
  }
}

template <int N, class T, class I, class Gradient>
__global__ void __launch_bounds__(kPoolThreads, kTwoBlocks)
    pixels_kernel(PoolGrid<I> g, Gradient gradient, T* dx, I items) {
  using C = Compute<T>;
  const I item = static_cast<I>(blockIdx.x) * kPoolThreads + static_cast<I>(threadIdx.x);
  if (item >= items) return;
  const auto p = g.input_pixel(item);
  const auto ws = g.w.covering(p.w);
  C sum[N] = {};
  each_row_of_windows(g, p.d, p.h, [&](I od, I oh, I kd, I kh) {
    for (I ow = ws.begin; ow < ws.end; ++ow) {
      const I kw = g.w.tap(ow, p.w);
      if (kw < 0) continue;
      gradient.add(sum, g.output_at(p.image, od, oh, ow) + p.channel, g, od, oh, ow, kd, kh, kw);
    }
  });
  T* to = dx + g.input_at(p.image, p.d, p.h, p.w) + p.channel;
  if constexpr (N == 1) {
    *to = store<T>(sum[0]);
  } else {
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = store<T>(sum[j]);
    store_pack(to, pack);
  }
}

// N inputs in a row of memory, which may end the row of the picture and begin another.
template <int N, class T, class I, class Gradient>
__global__ void __launch_bounds__(kPoolThreads, kTwoBlocks)
    rows_kernel(PoolGrid<I> g, Gradient gradient, T* dx, I inputs) {
  using C = Compute<T>;
  const I first = (static_cast<I>(blockIdx.x) * kPoolThreads + static_cast<I>(threadIdx.x)) * N;
  if (first >= inputs) return;
  auto p = g.input_pixel(first);
  const I here = inputs - first < N ? inputs - first : N;
  C sum[N] = {};
  for (I begin = 0; begin < here;) {
    const I left = g.w.in - p.w, count = left < here - begin ? left : here - begin;
    const I from = g.w.covering(p.w).begin, to = g.w.covering(p.w + count - 1).end;
    const I origin = p.w - begin;  // the position in the row of element 0, were it in the same row
    each_row_of_windows(g, p.d, p.h, [&](I od, I oh, I kd, I kh) {
      const I at = g.output_at(p.image, od, oh, 0);
      for (I ow = from; ow < to; ++ow) {
        const auto s = gradient.share(at + ow, g, od, oh, ow, kd, kh);
        const I lo = s.lo > p.w ? s.lo : p.w, hi = s.hi < p.w + count ? s.hi : p.w + count;
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += origin + j >= lo && origin + j < hi ? s.value : C(0);
      }
    });
    begin += count;
    p.w = 0;
    if (++p.h == g.h.in) {
      p.h = 0;
      if (++p.d == g.d.in) {
        p.d = 0;
        ++p.image;
      }
    }
  }
  if (here == N) {
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = store<T>(sum[j]);
    store_pack(dx + first, pack);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (j < here) dx[first + j] = store<T>(sum[j]);
  }
}

template <class T, class I, class Gradient>
void run(const PoolShape& s, const Gradient& gradient, T* dx, bool packed, Stream stream) {
  constexpr int N = Pack<T>::N;
  const int64_t inputs = s.inputs();
  const dim3 block(kPoolThreads);
  if (!s.channels_last && is_aligned(dx)) {
    launch(rows_kernel<N, T, I, Gradient>, grid_for(ceil_div(inputs, N), kPoolThreads), block, 0, stream,
           PoolGrid<I>(s, 1), gradient, dx, static_cast<I>(inputs));
  } else if (packed) {
    launch(pixels_kernel<N, T, I, Gradient>, grid_for(inputs / N, kPoolThreads), block, 0, stream,
           PoolGrid<I>(s, N), gradient, dx, static_cast<I>(inputs / N));
  } else {
    launch(pixels_kernel<1, T, I, Gradient>, grid_for(inputs, kPoolThreads), block, 0, stream,
           PoolGrid<I>(s, 1), gradient, dx, static_cast<I>(inputs));
  }
}

}  // namespace

void max_pool_backward(const MaxPoolBackwardParams& p, Stream stream) {
  if (p.shape.inputs() == 0) return;
  const bool bytes = pool_codes_are_bytes(p.shape);
  visit(p.dtype, [&](auto element) {
    visit_pool_index(p.shape, [&](auto index) {
      using T = decltype(element);
      using I = decltype(index);
      const T* dy = static_cast<const T*>(p.dy);
      T* dx = static_cast<T*>(p.dx);
      const MaxGradient<T, I> gradient{dy, static_cast<const uint8_t*>(bytes ? p.codes : nullptr),
                                       static_cast<const int32_t*>(bytes ? nullptr : p.codes)};
      run<T, I>(p.shape, gradient, dx, pool_is_packed<T>(p.shape, dy, dx, gradient.bytes), stream);
    });
  });
}

void avg_pool_backward(const AvgPoolBackwardParams& p, Stream stream) {
  if (p.shape.inputs() == 0) return;
  visit(p.dtype, [&](auto element) {
    visit_pool_index(p.shape, [&](auto index) {
      using T = decltype(element);
      using I = decltype(index);
      const T* dy = static_cast<const T*>(p.dy);
      T* dx = static_cast<T*>(p.dx);
      const MeanGradient<T, I> gradient{dy, static_cast<I>(p.divisor), p.count_include_pad};
      run<T, I>(p.shape, gradient, dx, pool_is_packed<T>(p.shape, dy, dx), stream);
    });
  });
}

}  // namespace fastnn::cuda
