// Convolution as its formula says: the algorithm that is always applicable, and what the others are tested
// against.
#include <algorithm>

#include "cpu/conv/algorithms.h"
#include "cpu/parallel.h"

namespace fastnn::cpu {
namespace {

int64_t product(const int64_t (&v)[3]) {
  return v[0] * v[1] * v[2];
}

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
  parallel_for(p.n * p.k, 1, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      const int64_t n = plane / p.k, k = plane % p.k;
      const T* x = static_cast<const T*>(p.x) + (n * p.c + k / kg * cg) * in;
      const T* w = static_cast<const T*>(p.w) + k * cg * taps;
      T* y = static_cast<T*>(p.y) + plane * out;
      std::fill_n(y, out, p.b ? static_cast<const T*>(p.b)[k] : T(0));
      for (int64_t c = 0; c < cg; ++c) {
        for_each_tap(p, [&](int64_t o, int64_t r, int64_t i) { y[o] += w[c * taps + r] * x[c * in + i]; });
      }
    }
  });
}

template <class T>
void backward_data(const ConvBackwardDataParams& p) {
  const int64_t cg = p.c / p.g, kg = p.k / p.g, taps = product(p.kernel), in = product(p.in),
                out = product(p.out);
  parallel_for(p.n * p.c, 1, [&](int64_t first, int64_t last) {
    for (int64_t plane = first; plane < last; ++plane) {
      const int64_t n = plane / p.c, c = plane % p.c, g = c / cg;
      const T* dy = static_cast<const T*>(p.dy) + (n * p.k + g * kg) * out;
      const T* w = static_cast<const T*>(p.w) + (g * kg * cg + c % cg) * taps;
      T* dx = static_cast<T*>(p.dx) + plane * in;
      std::fill_n(dx, in, p.b ? static_cast<const T*>(p.b)[c] : T(0));
      for (int64_t k = 0; k < kg; ++k) {
        for_each_tap(
            p, [&](int64_t o, int64_t r, int64_t i) { dx[i] += w[k * cg * taps + r] * dy[k * out + o]; });
      }
    }
  });
}

template <class T>
void backward_weight(const ConvBackwardWeightParams& p) {
  const int64_t cg = p.c / p.g, kg = p.k / p.g, taps = product(p.kernel), in = product(p.in),
                out = product(p.out);
  parallel_for(p.k * cg, 1, [&](int64_t first, int64_t last) {
    for (int64_t pair = first; pair < last; ++pair) {
      const int64_t k = pair / cg, c = k / kg * cg + pair % cg;
      T* dw = static_cast<T*>(p.dw) + pair * taps;
      std::fill_n(dw, taps, T(0));
      for (int64_t n = 0; n < p.n; ++n) {
        const T* dy = static_cast<const T*>(p.dy) + (n * p.k + k) * out;
        const T* x = static_cast<const T*>(p.x) + (n * p.c + c) * in;
        for_each_tap(p, [&](int64_t o, int64_t r, int64_t i) { dw[r] += dy[o] * x[i]; });
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
