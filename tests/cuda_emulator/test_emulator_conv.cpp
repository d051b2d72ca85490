// Convolution by the CUDA kernels against loops in double: every type, both layouts, exact bounds.
#include <cmath>
#include <string>
#include <vector>

#include "cuda/conv.h"
#include "cuda_emulator/launchers/workspace.h"
#include "harness.h"

using namespace fastnn;
using namespace fastnn::testing;

namespace {

struct Index {
  int64_t n, channel, d, h, w;
};

// Images and weights of either layout.
template <class T>
class Image {
 public:
  Image(int64_t n, int64_t channels, const int64_t (&size)[3], bool last, Place place)
      : n_(n),
        channels_(channels),
        d_(size[0]),
        h_(size[1]),
        w_(size[2]),
        last_(last),
        buffer_(count(), place) {}
  int64_t count() const { return n_ * channels_ * d_ * h_ * w_; }
  const Buffer<T>& buffer() const { return buffer_; }
  T* data() const { return buffer_.data(); }
  double operator()(const Index& i) const {
    const int64_t plane = d_ * h_ * w_, pixel = (i.d * h_ + i.h) * w_ + i.w;
    return to_double(buffer_[last_ ? (i.n * plane + pixel) * channels_ + i.channel
                                   : (i.n * channels_ + i.channel) * plane + pixel]);
  }
  template <class F>
  void each(const F& f) const {
    for (int64_t n = 0; n < n_; ++n)
      for (int64_t c = 0; c < channels_; ++c)
        for (int64_t d = 0; d < d_; ++d)
          for (int64_t h = 0; h < h_; ++h)
            for (int64_t w = 0; w < w_; ++w) f(Index{n, c, d, h, w});
  }

 private:
  int64_t n_, channels_, d_, h_, w_;
  bool last_;
  Buffer<T> buffer_;
};

// f(y index, x index, w index) for each product of the convolution.
template <class T, class F>
void each_product(const ConvGeometry& g, const Image<T>& y, const F& f) {
  const int64_t C = g.c / g.g, K = g.k / g.g;
  y.each([&](const Index& o) {
    for (int64_t c = 0; c < C; ++c)
      for (int64_t r = 0; r < g.kernel[0]; ++r)
        for (int64_t s = 0; s < g.kernel[1]; ++s)
          for (int64_t t = 0; t < g.kernel[2]; ++t) {
            const Index x{o.n, o.channel / K * C + c, o.d * g.stride[0] - g.padding[0] + r * g.dilation[0],
                          o.h * g.stride[1] - g.padding[1] + s * g.dilation[1],
                          o.w * g.stride[2] - g.padding[2] + t * g.dilation[2]};
            const bool inside =
                x.d >= 0 && x.d < g.in[0] && x.h >= 0 && x.h < g.in[1] && x.w >= 0 && x.w < g.in[2];
            if (inside) f(o, x, Index{o.channel, c, r, s, t});
          }
  });
}

// Sums of products and of their sizes, per element of an image, in its order.
struct Sums {
  std::vector<double> sum, size;
  const Index shape;
  explicit Sums(const Index& shape)
      : sum(shape.n * shape.channel * shape.d * shape.h * shape.w), size(sum.size()), shape(shape) {}
  size_t at(const Index& i) const {
    return (((i.n * shape.channel + i.channel) * shape.d + i.d) * shape.h + i.h) * shape.w + i.w;
  }
  void add(const Index& i, double value) { sum[at(i)] += value, size[at(i)] += std::abs(value); }
};

template <class T>
void check_sums(const char* what, const Image<T>& got, const Sums& want, double eps) {
  got.each([&](const Index& i) {
    const double is = got(i), sum = want.sum[want.at(i)],
                 allowed = eps * (want.size[want.at(i)] + std::abs(sum));
    if (std::abs(is - sum) <= allowed) return;
    const Case where(std::string(what) + " " + std::to_string(i.n) + " " + std::to_string(i.channel) + " " +
                     std::to_string(i.h) + " " + std::to_string(i.w) + ": " + std::to_string(is) + ", not " +
                     std::to_string(sum));
    CHECK(is == sum);
  });
}

template <class Params>
void start(const Params& p, bool tf32) {
  const Workspace workspace(cuda::conv_workspace(p));
  if constexpr (std::is_same_v<Params, ConvForwardParams>)
    cuda::conv_forward(p, tf32, workspace.data(), nullptr);
  if constexpr (std::is_same_v<Params, ConvBackwardDataParams>)
    cuda::conv_backward_data(p, tf32, workspace.data(), nullptr);
  if constexpr (std::is_same_v<Params, ConvBackwardWeightParams>)
    cuda::conv_backward_weight(p, tf32, workspace.data(), nullptr);
}

template <class T>
void check_conv(ConvGeometry g, DType dtype, double eps, bool tf32, Place place) {
  g.dtype = dtype;
  for (int d = 0; d < 3; ++d) {
    g.out[d] = (g.in[d] + 2 * g.padding[d] - (g.kernel[d] - 1) * g.dilation[d] - 1) / g.stride[d] + 1;
  }
  const Case where("c " + std::to_string(g.c) + " k " + std::to_string(g.k) + " g " + std::to_string(g.g) +
                   (g.channels_last ? " last " : " planes ") + name(place));
  const Image<T> x(g.n, g.c, g.in, g.channels_last, place),
      w(g.k, g.c / g.g, g.kernel, g.channels_last, place);
  const Image<T> dy(g.n, g.k, g.out, g.channels_last, place), y(g.n, g.k, g.out, g.channels_last, place);
  const Image<T> dx(g.n, g.c, g.in, g.channels_last, place),
      dw(g.k, g.c / g.g, g.kernel, g.channels_last, place);
  const Buffer<T> bias(g.k, place);
  x.buffer().fill_random(1), w.buffer().fill_random(2), dy.buffer().fill_random(3), bias.fill_random(4);

  Sums want_y({g.n, g.k, g.out[0], g.out[1], g.out[2]}), want_dx({g.n, g.c, g.in[0], g.in[1], g.in[2]});
  Sums want_dw({g.k, g.c / g.g, g.kernel[0], g.kernel[1], g.kernel[2]});
  y.each([&](const Index& i) { want_y.add(i, to_double(bias[i.channel])); });
  each_product(g, y, [&](const Index& o, const Index& i, const Index& r) {
    want_y.add(o, x(i) * w(r)), want_dx.add(i, dy(o) * w(r)), want_dw.add(r, dy(o) * x(i));
  });
  start(ConvForwardParams{g, x.data(), w.data(), bias.data(), y.data()}, tf32);
  check_sums("y", y, want_y, eps);
  start(ConvBackwardDataParams{g, dy.data(), w.data(), nullptr, dx.data()}, tf32);
  check_sums("dx", dx, want_dx, eps);
  start(ConvBackwardWeightParams{g, dy.data(), x.data(), dw.data()}, tf32);
  check_sums("dw", dw, want_dw, eps);
}

template <class T>
void check_every_case(DType dtype, double eps, bool tf32 = false) {
  for (bool last : {false, true}) {
    for (Place place : {Place::kEnd, Place::kStartOdd}) {
      const auto check = [&](ConvGeometry g) {
        g.channels_last = last;
        check_conv<T>(g, dtype, eps, tf32, place);
      };
      check({.n = 2,
             .c = 3,
             .k = 5,
             .in = {1, 7, 6},
             .kernel = {1, 3, 3},
             .stride = {1, 2, 2},
             .padding = {0, 1, 1}});
      check({.n = 1, .c = 16, .k = 24, .in = {1, 5, 9}, .kernel = {1, 3, 3}, .padding = {0, 1, 2}});
      check({.n = 2, .c = 16, .k = 16, .g = 2, .in = {3, 4, 5}, .kernel = {2, 3, 1}, .dilation = {1, 1, 2}});
      check({.n = 2, .c = 8, .k = 8, .g = 8, .in = {1, 6, 7}, .kernel = {1, 3, 5}, .padding = {0, 1, 2}});
      check({.n = 1, .c = 3, .k = 6, .g = 3, .in = {1, 9, 7}, .kernel = {1, 3, 2}, .stride = {1, 2, 3}});
    }
  }
}

}  // namespace

TEST(conv_float) {
  check_every_case<float>(DType::kFloat32, 3e-6);
}
TEST_ONCE(conv_double) {
  check_every_case<double>(DType::kFloat64, 4e-15);
}
TEST(conv_bfloat16) {
  check_every_case<BFloat16>(DType::kBFloat16, 4e-3);
}
TEST_ONCE(conv_float16) {
  check_every_case<Float16>(DType::kFloat16, 5e-4);
}
TEST_ONCE(conv_tf32) {
  check_every_case<float>(DType::kFloat32, 1e-3, /*tf32=*/true);
}
// Shares of a long sum, and tiles of the largest size.
TEST_ONCE(conv_of_many_tiles) {
  for (bool last : {false, true}) {
    check_conv<BFloat16>(
        {.n = 3, .c = 16, .k = 8, .in = {1, 20, 19}, .kernel = {1, 3, 3}, .channels_last = last},
        DType::kBFloat16, 4e-3, false, Place::kEnd);
    check_conv<BFloat16>({.n = 2, .c = 8, .k = 72, .in = {1, 64, 60}, .channels_last = last},
                         DType::kBFloat16, 4e-3, false, Place::kEnd);
  }
}
