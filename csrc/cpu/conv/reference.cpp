// Convolution as its formula says: the algorithm that is always applicable, and what the others are tested
// against.
#include "cpu/conv/algorithms.h"
#include "cpu/parallel.h"

namespace fastnn::cpu {
namespace {

int64_t product(const int64_t (&v)[3]) {
  return v[0] * v[1] * v[2];
}

// Element (channel, position) of an image, or of a filter, is at channel * channel + position * step.
struct Strides {
  int64_t channel, step;
  Strides(const ConvGeometry& p, int64_t channels, int64_t positions)
      : channel(p.channels_last ? 1 : positions), step(p.channels_last ? channels : 1) {}
};

// Where each of the three tensors has its channels.
struct Layout {
  Strides x, w, y;
  explicit Layout(const ConvGeometry& p)
      : x(p, p.c, product(p.in)), w(p, p.c / p.g, product(p.kernel)), y(p, p.k, product(p.out)) {}
};

// Calls f(output position, kernel tap, input position), flat indices, for every tap that meets the input.
template <class F>
void for_each_tap(const ConvGeometry& p, const F& f) {
  for (int64_t o = 0; o < product(p.out); ++o) {
    const int64_t at[3] = {o / p.out[2] / p.out[1], o / p.out[2] % p.out[1], o % p.out[2]};
    for (int64_t r = 0; r < product(p.kernel); ++r) {
      const int64_t tap[3] = {r / p.kernel[2] / p.kernel[1], r / p.kernel[2] % p.kernel[1], r % p.kernel[2]};
      int64_t i = 0;
      bool inside = true;
      for (int d = 0; d < 3; ++d) {
        const int64_t x = at[d] * p.stride[d] + tap[d] * p.dilation[d] - p.padding[d];
        inside = inside && x >= 0 && x < p.in[d];
        i = i * p.in[d] + x;
      }
      if (inside) f(o, r, i);
    }
  }
}

template <class T>
void forward(const ConvForwardParams& p) {
  const int64_t cg = p.c / p.g, kg = p.k / p.g, taps = product(p.kernel), in = product(p.in),
                out = product(p.out);
  const Layout at(p);
  parallel_for(p.n * p.k, 1, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      const int64_t n = plane / p.k, k = plane % p.k;
      const T* x = static_cast<const T*>(p.x) + n * p.c * in + k / kg * cg * at.x.channel;
      const T* w = static_cast<const T*>(p.w) + k * cg * taps;
      T* y = static_cast<T*>(p.y) + n * p.k * out + k * at.y.channel;
      for (int64_t o = 0; o < out; ++o) y[o * at.y.step] = p.b ? static_cast<const T*>(p.b)[k] : T(0);
      for (int64_t c = 0; c < cg; ++c) {
        for_each_tap(p, [&](int64_t o, int64_t r, int64_t i) {
          y[o * at.y.step] += w[c * at.w.channel + r * at.w.step] * x[c * at.x.channel + i * at.x.step];
        });
      }
    }
  });
}

template <class T>
void backward_data(const ConvBackwardDataParams& p) {
  const int64_t cg = p.c / p.g, kg = p.k / p.g, taps = product(p.kernel), in = product(p.in),
                out = product(p.out);
  const Layout at(p);
  parallel_for(p.n * p.c, 1, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      const int64_t n = plane / p.c, c = plane % p.c, g = c / cg;
      const T* dy = static_cast<const T*>(p.dy) + n * p.k * out + g * kg * at.y.channel;
      const T* w = static_cast<const T*>(p.w) + g * kg * cg * taps + c % cg * at.w.channel;
      T* dx = static_cast<T*>(p.dx) + n * p.c * in + c * at.x.channel;
      for (int64_t i = 0; i < in; ++i) dx[i * at.x.step] = p.b ? static_cast<const T*>(p.b)[c] : T(0);
      for (int64_t k = 0; k < kg; ++k) {
        for_each_tap(p, [&](int64_t o, int64_t r, int64_t i) {
          dx[i * at.x.step] += w[k * cg * taps + r * at.w.step] * dy[k * at.y.channel + o * at.y.step];
        });
      }
    }
  });
}

template <class T>
void backward_weight(const ConvBackwardWeightParams& p) {
  const int64_t cg = p.c / p.g, kg = p.k / p.g, taps = product(p.kernel), in = product(p.in),
                out = product(p.out);
  const Layout at(p);
  parallel_for(p.k * cg, 1, [&](int64_t first, int64_t last) {
    for (int64_t pair = first; pair < last; ++pair) {
      const int64_t k = pair / cg, c = k / kg * cg + pair % cg;
      T* dw = static_cast<T*>(p.dw) + k * cg * taps + pair % cg * at.w.channel;
      for (int64_t r = 0; r < taps; ++r) dw[r * at.w.step] = T(0);
      for (int64_t n = 0; n < p.n; ++n) {
        const T* dy = static_cast<const T*>(p.dy) + n * p.k * out + k * at.y.channel;
        const T* x = static_cast<const T*>(p.x) + n * p.c * in + c * at.x.channel;
        for_each_tap(p, [&](int64_t o, int64_t r, int64_t i) {
          dw[r * at.w.step] += dy[o * at.y.step] * x[i * at.x.step];
        });
      }
    }
  });
}

}  // namespace

void conv_reference(const ConvForwardParams& p) {
  p.dtype == DType::kFloat64 ? forward<double>(p) : forward<float>(p);
}
void conv_reference(const ConvBackwardDataParams& p) {
  p.dtype == DType::kFloat64 ? backward_data<double>(p) : backward_data<float>(p);
}
void conv_reference(const ConvBackwardWeightParams& p) {
  p.dtype == DType::kFloat64 ? backward_weight<double>(p) : backward_weight<float>(p);
}

}  // namespace fastnn::cpu
