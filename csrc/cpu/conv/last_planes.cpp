// Convolutions with channels last whose channels are too few for registers of them: through copies with
// contiguous planes.
#include <algorithm>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/patch.h"
#include "cpu/kernels/conv_last.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

int64_t product(const int64_t (&v)[3]) {
  return v[0] * v[1] * v[2];
}

// dst[n, cols, rows] = src[n, rows, cols]
template <class T>
void transpose(const T* src, int64_t n, int64_t rows, int64_t cols, T* dst) {
  constexpr int64_t kBlock = 256;
  const int64_t blocks = ceil_div(rows, kBlock);
  parallel_for(n * blocks, ceil_div(kGrain, kBlock * cols), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t image = item / blocks * rows * cols, row = item % blocks * kBlock;
      const int64_t count = rows - row < kBlock ? rows - row : kBlock;
      // Rows of dst are as long as `rows`; the kernel fills `count` of each.
      conv_last_kernels_of<T>().transpose(src + image + row * cols, cols, count, cols, dst + image + row,
                                          rows);
    }
  });
}

// A copy of a tensor [n, positions, channels] as [n, channels, positions].
template <class T>
class Planes {
 public:
  Planes(int64_t n, int64_t channels, int64_t positions)
      : n_(n), channels_(channels), positions_(positions), data_(n * channels * positions) {}
  Planes(int64_t n, int64_t channels, int64_t positions, const void* from) : Planes(n, channels, positions) {
    transpose(static_cast<const T*>(from), n, positions, channels, data_.data());
  }
  T* data() const { return data_.data(); }
  void store(void* to) const { transpose(data_.data(), n_, channels_, positions_, static_cast<T*>(to)); }

 private:
  int64_t n_, channels_, positions_;
  Scratch<T> data_;
};

// Images at a time, whose copies stay in a cache; their results do not depend on each other.
constexpr int64_t kCopyBytes = 4 << 20;

// f(p of some images, elements of x and of y before them)
template <class T, class Params, class F>
void for_each_chunk(Params p, const F& f) {
  const int64_t x_image = p.c * product(p.in), y_image = p.k * product(p.out), total = p.n;
  const int64_t most = std::max<int64_t>(1, kCopyBytes / ((x_image + y_image) * int64_t{sizeof(T)}));
  const int64_t chunks = ceil_div(total, most);
  p.channels_last = false;
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t first = total * i / chunks;
    p.n = total * (i + 1) / chunks - first;
    f(p, first * x_image, first * y_image);
  }
}

template <class T>
void forward(const ConvForwardParams& all) {
  const Planes<T> w(all.k, all.c / all.g, product(all.kernel), all.w);
  for_each_chunk<T>(all, [&](ConvForwardParams p, int64_t x_first, int64_t y_first) {
    const Planes<T> x(p.n, p.c, product(p.in), static_cast<const T*>(all.x) + x_first);
    const Planes<T> y(p.n, p.k, product(p.out));
    p.x = x.data(), p.w = w.data(), p.y = y.data();
    conv_forward(p);
    y.store(static_cast<T*>(all.y) + y_first);
  });
}

template <class T>
void backward_data(const ConvBackwardDataParams& all) {
  const Planes<T> w(all.k, all.c / all.g, product(all.kernel), all.w);
  for_each_chunk<T>(all, [&](ConvBackwardDataParams p, int64_t x_first, int64_t y_first) {
    const Planes<T> dy(p.n, p.k, product(p.out), static_cast<const T*>(all.dy) + y_first);
    const Planes<T> dx(p.n, p.c, product(p.in));
    p.dy = dy.data(), p.w = w.data(), p.dx = dx.data();
    conv_backward_data(p);
    dx.store(static_cast<T*>(all.dx) + x_first);
  });
}

template <class T>
void backward_weight(ConvBackwardWeightParams p) {
  const Planes<T> dy(p.n, p.k, product(p.out), p.dy), x(p.n, p.c, product(p.in), p.x);
  const Planes<T> dw(p.k, p.c / p.g, product(p.kernel));
  void* const out = p.dw;
  p.dy = dy.data(), p.x = x.data(), p.dw = dw.data();
  p.channels_last = false;
  conv_backward_weight(p);
  dw.store(out);
}

}  // namespace

void conv_last_planes(const ConvForwardParams& p) {
  p.dtype == DType::kFloat64 ? forward<double>(p) : forward<float>(p);
}
void conv_last_planes(const ConvBackwardDataParams& p) {
  p.dtype == DType::kFloat64 ? backward_data<double>(p) : backward_data<float>(p);
}
void conv_last_planes(const ConvBackwardWeightParams& p) {
  p.dtype == DType::kFloat64 ? backward_weight<double>(p) : backward_weight<float>(p);
}

}  // namespace fastnn::cpu
