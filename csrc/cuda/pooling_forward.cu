// Pooling forward: y = max or mean of x over each window, and torch's indices from the codes of maxima.
//
// Bound by memory. A thread makes one output, or those of a pack of neighbouring channels, from loads that
// neighbours share lines of; square windows of 2 and 3 are unrolled, so that the loads of a row are in flight
// together. Windows of kWide taps and more are split: contiguous, over the lanes of a warp, which read
// neighbours; channels last, over the warps of a block, whose lanes are channels. Parts are merged in an
// order that only the shape decides.
#include "cuda/pooling.cuh"
#include "cuda/pooling.h"
#include "cuda/reduce.cuh"

namespace fastnn::cuda {
namespace {

constexpr int64_t kWide = 64;
constexpr int kWideWarps = 8;

// The largest value so far and its code: of equals the first, of NaNs the last, as a loop over the taps
// finds.
template <class C>
struct Best {
  C value;
  int32_t code;
};
constexpr int32_t kNoCode = 0x7fffffff;

template <class C>
__device__ __forceinline__ Best<C> shuffle(const Best<C>& x, int mask) {
  return {cuda::shuffle(x.value, mask), cuda::shuffle(x.code, mask)};
}
struct Better {
  template <class C>
  __device__ __forceinline__ Best<C> operator()(const Best<C>& a, const Best<C>& b) const {
    const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
    const bool later = a.code > b.code;
    if (a_is_nan || b_is_nan) return a_is_nan && (!b_is_nan || later) ? a : b;
    if (a.value == b.value) return later ? b : a;
    return a.value > b.value ? a : b;
  }
};

// A rule: what is kept of the taps seen, per output, and what is written in the end. Windows are those of D,
// H, W.
template <class T, class I>
struct MaxRule {
  using C = Compute<T>;
  using State = Best<C>;
  using Join = Better;
  T* y;
  uint8_t* bytes;  // codes, or null
  int32_t* words;  // codes, or null

  __device__ __forceinline__ static State start() {
    return {-static_cast<C>(__int_as_float(0x7f800000)), kNoCode};
  }
  __device__ __forceinline__ static void add(State& s, C v, I code) {
    if (v > s.value || v != v) s = {v, static_cast<int32_t>(code)};
  }
  using Window = typename PoolAxis<I>::Window;
  template <int N>
  __device__ __forceinline__ void finish(State (&s)[N], I at, const PoolGrid<I>& g, const PoolGrid<I>::Pixel&,
                                         const Window& d, const Window& h, const Window& w) const {
    // Only minus infinity: the first tap. No tap at all, dilated past the input: 0.
    const bool any = d.hi > d.lo && h.hi > h.lo && w.hi > w.lo;
    const int32_t first = any ? static_cast<int32_t>(g.code(d.lo, h.lo, w.lo)) : 0;
    PoolCodes<uint8_t, N> codes;
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (s[j].code == kNoCode) s[j].code = first;
      pack.v[j] = store<T>(s[j].value);
      codes.v[j] = static_cast<uint8_t>(s[j].code);
      if (words != nullptr) words[at + j] = s[j].code;
    }
    if (bytes != nullptr) *reinterpret_cast<PoolCodes<uint8_t, N>*>(bytes + at) = codes;
    write<N>(y + at, pack);
  }
  template <int N>
  __device__ __forceinline__ static void write(T* p, const Pack<T>& pack) {
    if constexpr (N == 1) {
      *p = pack.v[0];
    } else {
      store_pack(p, pack);
    }
  }
};

template <class T, class I>
struct MeanRule {
  using C = Compute<T>;
  using State = C;
  using Join = Sum;
  T* y;
  I divisor;  // 0: the number of elements in the window
  bool include_pad;

  __device__ __forceinline__ static State start() { return C(0); }
  __device__ __forceinline__ static void add(State& s, C v, I) { s += v; }
  using Window = typename PoolAxis<I>::Window;
  template <int N>
  __device__ __forceinline__ void finish(State (&s)[N], I at, const PoolGrid<I>& g,
                                         const PoolGrid<I>::Pixel& o, const Window& d, const Window& h,
                                         const Window& w) const {
    const I count = divisor != 0
                        ? divisor
                        : g.d.count(d, include_pad) * g.h.count(h, include_pad) * g.w.count(w, include_pad);
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.v[j] = store<T>(s[j] / static_cast<C>(count));
    MaxRule<T, I>::template write<N>(y + at, pack);
  }
};

template <int N, class T>
__device__ __forceinline__ Pack<T> read(const T* p) {
  if constexpr (N == 1) {
    Pack<T> pack;
    pack.v[0] = *p;
    return pack;
  } else {
    return load_pack(p);
  }
}

// kSide: the windows' height and width, or 0: any.
template <int N, int kSide, class T, class I, class Rule>
__global__ void __launch_bounds__(kPoolThreads, kTwoBlocks)
    direct_kernel(PoolGrid<I> g, const T* x, Rule rule, I items) {
  const I item = static_cast<I>(blockIdx.x) * kPoolThreads + static_cast<I>(threadIdx.x);
  if (item >= items) return;
  const auto o = g.output_pixel(item);
  const auto d = g.d.window(o.d), h = g.h.window(o.h), w = g.w.window(o.w);
  typename Rule::State state[N];
#pragma unroll
  for (int j = 0; j < N; ++j) state[j] = Rule::start();
  for (I kd = d.lo; kd < d.hi; ++kd) {
    const T* corner = x + g.input_at(o.image, d.begin + kd * g.d.dilation, 0, 0) + o.channel;
    const auto tap = [&](I kh, I kw) {
      return corner + ((h.begin + kh * g.h.dilation) * g.w.in + w.begin + kw * g.w.dilation) * g.channels;
    };
    const auto add = [&](const Pack<T>& v, I kh, I kw) {
#pragma unroll
      for (int j = 0; j < N; ++j) Rule::add(state[j], load(v.v[j]), g.code(kd, kh, kw));
    };
    if constexpr (kSide > 0) {
#pragma unroll
      for (int kh = 0; kh < kSide; ++kh) {
        if (kh < h.lo || kh >= h.hi) continue;
        Pack<T> in[kSide];
#pragma unroll
        for (int kw = 0; kw < kSide; ++kw)
          if (kw >= w.lo && kw < w.hi) in[kw] = read<N>(tap(kh, kw));
#pragma unroll
        for (int kw = 0; kw < kSide; ++kw)
          if (kw >= w.lo && kw < w.hi) add(in[kw], kh, kw);
      }
    } else {
      for (I kh = h.lo; kh < h.hi; ++kh)
        for (I kw = w.lo; kw < w.hi; ++kw) add(read<N>(tap(kh, kw)), kh, kw);
    }
  }
  rule.finish(state, g.output_at(o), g, o, d, h, w);
}

// Every kStep-th tap of a window, row by row; quotients and remainders are kept, not divided for.
template <class T, class I, class Rule>
__device__ __forceinline__ void take_taps(const PoolGrid<I>& g, const T* x,
                                          const typename PoolGrid<I>::Pixel& o, I first, I step,
                                          typename Rule::State& state) {
  const auto d = g.d.window(o.d), h = g.h.window(o.h), w = g.w.window(o.w);
  const I D = d.hi - d.lo, H = h.hi - h.lo, W = w.hi - w.lo;
  if (H == 0 || W == 0) return;
  const I step_rows = step / W, step_w = step % W, step_d = step_rows / H, step_h = step_rows % H;
  I kw = first % W, kh = first / W % H, kd = first / W / H;
  const I z = d.begin + d.lo * g.d.dilation, y = h.begin + h.lo * g.h.dilation,
          left = w.begin + w.lo * g.w.dilation;
#pragma unroll 4
  while (kd < D) {
    const I at = g.input_at(o.image, z + kd * g.d.dilation, y + kh * g.h.dilation, left + kw * g.w.dilation) +
                 o.channel;
    Rule::add(state, load(x[at]), g.code(d.lo + kd, h.lo + kh, w.lo + kw));
    kw += step_w;
    kh += step_h;
    kd += step_d;
    if (kw >= W) kw -= W, ++kh;
    if (kh >= H) kh -= H, ++kd;
  }
}

// Block (32, kWideWarps). kLast: lanes are channels [group * 32...) of one output pixel, warps share its
// window. Otherwise each warp has an output, lanes share its window.
template <bool kLast, class T, class I, class Rule>
__global__ void __launch_bounds__(kWarp* kWideWarps, kTwoBlocks)
    wide_kernel(PoolGrid<I> g, const T* x, Rule rule, I outputs, I groups) {
  using State = typename Rule::State;
  const I lane = static_cast<I>(threadIdx.x), warp = static_cast<I>(threadIdx.y);
  const I block = static_cast<I>(blockIdx.x);
  const I item =
      kLast ? block / groups * g.channels + block % groups * kWarp + lane : block * kWideWarps + warp;
  const bool exists = kLast ? block % groups * kWarp + lane < g.channels : item < outputs;
  const auto o = g.output_pixel(exists ? item : 0);
  State state[1] = {Rule::start()};
  if (exists) take_taps<T, I, Rule>(g, x, o, kLast ? warp : lane, kLast ? kWideWarps : kWarp, state[0]);
  if constexpr (kLast) {
    FASTNN_SHARED(State, parts, kWarp * kWideWarps);
    parts[threadIdx.y * kWarp + threadIdx.x] = state[0];
    __syncthreads();
    state[0] = parts[threadIdx.x];
#pragma unroll
    for (int k = 1; k < kWideWarps; ++k) {
      state[0] = typename Rule::Join()(state[0], parts[k * kWarp + threadIdx.x]);
    }
    if (warp != 0 || !exists) return;
  } else {
    state[0] = warp_reduce(state[0], typename Rule::Join());
    if (lane != 0 || !exists) return;
  }
  rule.finish(state, g.output_at(o), g, o, g.d.window(o.d), g.h.window(o.h), g.w.window(o.w));
}

template <class T, class I, class Rule>
void run(const PoolShape& s, const T* x, const Rule& rule, bool packed, Stream stream) {
  const I outputs = static_cast<I>(s.outputs());
  if (s.taps() >= kWide) {
    const PoolGrid<I> g(s, 1);
    const dim3 block(kWarp, kWideWarps);
    if (s.channels_last) {
      const int64_t groups = ceil_div(s.c, kWarp);
      launch(wide_kernel<true, T, I, Rule>, grid_for(s.outputs() / s.c * groups, 1), block, 0, stream, g, x,
             rule, outputs, static_cast<I>(groups));
    } else {
      launch(wide_kernel<false, T, I, Rule>, grid_for(s.outputs(), kWideWarps), block, 0, stream, g, x, rule,
             outputs, I{1});
    }
    return;
  }
  const int64_t side = s.adaptive || s.kernel[1] != s.kernel[2] ? 0 : s.kernel[1];
  const auto direct = [&](auto n, auto fixed) {
    constexpr int N = decltype(n)::kValue, kSide = decltype(fixed)::kValue;
    const int64_t items = s.outputs() / N;
    launch(direct_kernel<N, kSide, T, I, Rule>, grid_for(items, kPoolThreads), dim3(kPoolThreads), 0, stream,
           PoolGrid<I>(s, N), x, rule, static_cast<I>(items));
  };
  const auto with_side = [&](auto n) {
    if constexpr (sizeof(I) == 4) {
      if (side == 2) return direct(n, Int<2>{});
      if (side == 3) return direct(n, Int<3>{});
    }
    direct(n, Int<0>{});
  };
  packed ? with_side(Int<Pack<T>::N>{}) : with_side(Int<1>{});
}

// Code to position, element by element.
template <class I>
__global__ void __launch_bounds__(kPoolThreads, kTwoBlocks)
    indices_kernel(PoolGrid<I> g, const uint8_t* bytes, const int32_t* words, int64_t* indices, I items) {
  const I item = static_cast<I>(blockIdx.x) * kPoolThreads + static_cast<I>(threadIdx.x);
  if (item >= items) return;
  const auto o = g.output_pixel(item);
  const I code = bytes != nullptr ? static_cast<I>(bytes[item]) : static_cast<I>(words[item]);
  const I row = code / g.w.kernel, kw = code % g.w.kernel, kd = row / g.h.kernel, kh = row % g.h.kernel;
  const I d = g.d.begin(o.d) + kd * g.d.dilation, h = g.h.begin(o.h) + kh * g.h.dilation,
          w = g.w.begin(o.w) + kw * g.w.dilation;
  indices[item] = (static_cast<int64_t>(d) * g.h.in + h) * g.w.in + w;
}

}  // namespace

void max_pool_forward(const MaxPoolParams& p, Stream stream) {
  if (p.shape.outputs() == 0) return;
  const bool bytes = pool_codes_are_bytes(p.shape);
  visit(p.dtype, [&](auto element) {
    visit_pool_index(p.shape, [&](auto index) {
      using T = decltype(element);
      using I = decltype(index);
      const T* x = static_cast<const T*>(p.x);
      T* y = static_cast<T*>(p.y);
      const MaxRule<T, I> rule{y, static_cast<uint8_t*>(bytes ? p.codes : nullptr),
                               static_cast<int32_t*>(bytes ? nullptr : p.codes)};
      run<T, I>(p.shape, x, rule, pool_is_packed<T>(p.shape, x, y, rule.bytes), stream);
    });
  });
}

void avg_pool_forward(const AvgPoolParams& p, Stream stream) {
  if (p.shape.outputs() == 0) return;
  visit(p.dtype, [&](auto element) {
    visit_pool_index(p.shape, [&](auto index) {
      using T = decltype(element);
      using I = decltype(index);
      const T* x = static_cast<const T*>(p.x);
      T* y = static_cast<T*>(p.y);
      const MeanRule<T, I> rule{y, static_cast<I>(p.divisor), p.count_include_pad};
      run<T, I>(p.shape, x, rule, pool_is_packed<T>(p.shape, x, y), stream);
    });
  });
}

void max_pool_indices(const MaxPoolIndicesParams& p, Stream stream) {
  const int64_t items = p.shape.outputs();
  if (items == 0) return;
  const bool bytes = pool_codes_are_bytes(p.shape);
  visit_pool_index(p.shape, [&](auto index) {
    using I = decltype(index);
    launch(indices_kernel<I>, grid_for(items, kPoolThreads), dim3(kPoolThreads), 0, stream,
           PoolGrid<I>(p.shape, 1), static_cast<const uint8_t*>(bytes ? p.codes : nullptr),
           static_cast<const int32_t*>(bytes ? nullptr : p.codes), p.indices, static_cast<I>(items));
  });
}

}  // namespace fastnn::cuda
