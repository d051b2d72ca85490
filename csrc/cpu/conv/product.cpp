// A kernel as large as its input, without padding, makes convolution a matrix product per group:
//   y[N, K] = x[N, C R] w[K, C R]^T,  dx = dy w,  dw = dy^T x.
// With channels last, C R is R C on both sides, for one group only.
#include "cpu/conv/algorithms.h"
#include "cpu/gemm.h"

namespace fastnn::cpu {
namespace {

struct Shape {
  int64_t kg, steps;
  explicit Shape(const ConvGeometry& p)
      : kg(p.k / p.g), steps(p.c / p.g * p.kernel[0] * p.kernel[1] * p.kernel[2]) {}
};

template <class T>
void forward(const ConvForwardParams& p) {
  const Shape s(p);
  for (int64_t g = 0; g < p.g; ++g) {
    gemm(GemmParams<T>{.m = p.n,
                       .n = s.kg,
                       .k = s.steps,
                       .a = static_cast<const T*>(p.x) + g * s.steps,
                       .a_row = p.g * s.steps,
                       .a_col = 1,
                       .b = static_cast<const T*>(p.w) + g * s.kg * s.steps,
                       .b_row = 1,
                       .b_col = s.steps,
                       .c = static_cast<T*>(p.y) + g * s.kg,
                       .c_row = p.k,
                       .bias_col = p.b == nullptr ? nullptr : static_cast<const T*>(p.b) + g * s.kg});
  }
}

template <class T>
void backward_data(const ConvBackwardDataParams& p) {
  const Shape s(p);
  const int64_t taps = s.steps / (p.c / p.g);
  for (int64_t g = 0; g < p.g; ++g) {
    T* dx = static_cast<T*>(p.dx) + g * s.steps;
    if (p.b != nullptr) {
      const T* b = static_cast<const T*>(p.b) + g * s.steps / taps;
      for (int64_t n = 0; n < p.n; ++n) {
        for (int64_t i = 0; i < s.steps; ++i) {
          dx[n * p.g * s.steps + i] = b[p.channels_last ? i % p.c : i / taps];
        }
      }
    }
    gemm(GemmParams<T>{.m = p.n,
                       .n = s.steps,
                       .k = s.kg,
                       .a = static_cast<const T*>(p.dy) + g * s.kg,
                       .a_row = p.k,
                       .a_col = 1,
                       .b = static_cast<const T*>(p.w) + g * s.kg * s.steps,
                       .b_row = s.steps,
                       .b_col = 1,
                       .c = dx,
                       .c_row = p.g * s.steps,
                       .accumulate = p.b != nullptr});
  }
}

template <class T>
void backward_weight(const ConvBackwardWeightParams& p) {
  const Shape s(p);
  for (int64_t g = 0; g < p.g; ++g) {
    gemm(GemmParams<T>{.m = s.kg,
                       .n = s.steps,
                       .k = p.n,
                       .a = static_cast<const T*>(p.dy) + g * s.kg,
                       .a_row = 1,
                       .a_col = p.k,
                       .b = static_cast<const T*>(p.x) + g * s.steps,
                       .b_row = p.g * s.steps,
                       .b_col = 1,
                       .c = static_cast<T*>(p.dw) + g * s.kg * s.steps,
                       .c_row = s.steps});
  }
}

}  // namespace

void conv_product(const ConvForwardParams& p) {
  p.dtype == DType::kFloat64 ? forward<double>(p) : forward<float>(p);
}
void conv_product(const ConvBackwardDataParams& p) {
  p.dtype == DType::kFloat64 ? backward_data<double>(p) : backward_data<float>(p);
}
void conv_product(const ConvBackwardWeightParams& p) {
  p.dtype == DType::kFloat64 ? backward_weight<double>(p) : backward_weight<float>(p);
}

}  // namespace fastnn::cpu
