// Convolution's three products by the main loop of gemm/product.cuh (implicit GEMM).
//
// Packed, channels_last with whole packs of channels; else number by number. Backward-data of stride s
// multiplies zeros where a window misses: (s^2 - 1) / s^2 of its work in two dimensions.
#pragma once
#include "cuda/conv/image.cuh"
#include "cuda/gemm/product.cuh"

namespace fastnn::cuda {

inline int64_t positions_of(const ConvGeometry& g) {
  return g.kernel[0] * g.kernel[1] * g.kernel[2];
}
inline int64_t plane_of(const int64_t (&size)[3]) {
  return size[0] * size[1] * size[2];
}
inline ProductSize forward_size(const ConvGeometry& g) {
  return {g.n * plane_of(g.out), g.k / g.g, positions_of(g) * (g.c / g.g), g.g};
}
inline ProductSize backward_data_size(const ConvGeometry& g) {
  return {g.n * plane_of(g.in), g.c / g.g, positions_of(g) * (g.k / g.g), g.g};
}
inline ProductSize backward_weight_size(const ConvGeometry& g) {
  return {g.k / g.g, positions_of(g) * (g.c / g.g), g.n * plane_of(g.out), g.g};
}

template <class Large, class Small>
struct ConvProducts {
  using T = typename Large::T;

  static void forward(const ConvForwardParams& p, void* workspace, Stream stream) {
    const ProductSize s = forward_size(p);
    const Windows<T, false> x(p, p.x);
    const auto w = weights(p.w, s);
    to_image(p, p.k, plane_of(p.out), p.y, p.b, [&](const auto& out) {
      if (x.is_packed() && w.is_packed()) {
        run(p, s, WindowSource<T, false, true>{x}, w.packed(), out, workspace, stream);
      } else {
        run(p, s, WindowSource<T, false, false>{x}, w, out, workspace, stream);
      }
    });
  }
  static void backward_data(const ConvBackwardDataParams& p, void* workspace, Stream stream) {
    const ProductSize s = backward_data_size(p);
    const Windows<T, true> dy(p, p.dy);
    const BackWeightSource<T, false> w(p, p.w);
    to_image(p, p.c, plane_of(p.in), p.dx, p.b, [&](const auto& out) {
      if (dy.is_packed() && w.is_packed()) {
        run(p, s, WindowSource<T, true, true>{dy}, BackWeightSource<T, true>(p, p.w), out, workspace, stream);
      } else {
        run(p, s, WindowSource<T, true, false>{dy}, w, out, workspace, stream);
      }
    });
  }
  static void backward_weight(const ConvBackwardWeightParams& p, void* workspace, Stream stream) {
    const ProductSize s = backward_weight_size(p);
    const Windows<T, false> x(p, p.x);
    const T* dy = static_cast<const T*>(p.dy);
    const MatrixOut<T> dw(static_cast<T*>(p.dw), nullptr, s.cols, s.cols, s.rows * s.cols);
    if (!p.channels_last) {
      const int64_t plane = plane_of(p.out);
      const PlaneSource<T> planes{dy, s.rows, p.k, plane, s.depth, Divisor<int64_t>(plane)};
      return run(p, s, planes, TapSource<T, false>{x}, dw, workspace, stream);
    }
    const MatrixSource<T, false, false> matrix{dy, 1, p.k, s.rows, s.depth, s.rows};
    if (x.is_packed() && matrix.is_packed()) {
      run(p, s, matrix.packed(), TapSource<T, true>{x}, dw, workspace, stream);
    } else {
      run(p, s, matrix, TapSource<T, false>{x}, dw, workspace, stream);
    }
  }

 private:
  static MatrixSource<T, true, /*kPacked=*/false> weights(const void* w, const ProductSize& s) {
    return {static_cast<const T*>(w), s.depth, 1, s.cols, s.depth, s.cols * s.depth};
  }
  // f(the output of that layout)
  template <class F>
  static void to_image(const ConvGeometry& g, int64_t channels, int64_t plane, void* y, const void* b,
                       const F& f) {
    const int64_t cols = channels / g.g;
    T* to = static_cast<T*>(y);
    const T* bias = static_cast<const T*>(b);
    if (g.channels_last) {
      f(MatrixOut<T>(to, bias, cols, channels, cols, cols));
    } else {
      f(PlaneOut<T>{to, bias, cols, channels, plane, Divisor<int64_t>(plane)});
    }
  }
  template <class A, class B, class Out>
  static void run(const ConvGeometry& g, const ProductSize& s, const A& a, const B& b, const Out& out,
                  void* workspace, Stream stream) {
    planned_product<Large, Small>(g.dtype, s, a, b, out, workspace, stream);
  }
};

}  // namespace fastnn::cuda
