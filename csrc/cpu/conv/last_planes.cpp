// Convolutions with channels last whose channels are too few for registers of them: through copies with
// contiguous planes.
#include <algorithm>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/patch.h"
#include "cpu/conv/split_queue.h"
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

// Some images at a time, whose copies stay in a cache. Threads take chunks of images, or share each where
// there are fewer chunks; a chunk's results do not depend on that.
struct Chunks {
  static constexpr int64_t kBytes = 512 << 10;
  int64_t images, count, x_image, y_image;

  Chunks(const ConvGeometry& p, int64_t element_size)
      : images(p.n), x_image(p.c * product(p.in)), y_image(p.k * product(p.out)) {
    count = ceil_div(images, std::max<int64_t>(1, kBytes / ((x_image + y_image) * element_size)));
  }
  int64_t first(int64_t i) const { return images * i / count; }
  // Parameters of chunk i of p.
  template <class Params>
  Params of(Params p, int64_t i) const {
    p.n = first(i + 1) - first(i);
    p.channels_last = false;
    return p;
  }
  // f(begin, end) for ranges of all chunks
  template <class F>
  void for_each(const F& f) const {
    if (count < thread_limit()) return f(int64_t{0}, count);
    parallel_for(count, ceil_div(kGrain, images / count * (x_image + y_image)), f);
  }
};

template <class T>
void forward(const ConvForwardParams& all) {
  const Planes<T> w(all.k, all.c / all.g, product(all.kernel), all.w);
  const Chunks chunks(all, sizeof(T));
  chunks.for_each([&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ConvForwardParams p = chunks.of(all, i);
      const int64_t n = chunks.first(i);
      const Planes<T> x(p.n, p.c, product(p.in), static_cast<const T*>(all.x) + n * chunks.x_image);
      const Planes<T> y(p.n, p.k, product(p.out));
      p.x = x.data(), p.w = w.data(), p.y = y.data();
      conv_forward(p);
      y.store(static_cast<T*>(all.y) + n * chunks.y_image);
    }
  });
}

template <class T>
void backward_data(const ConvBackwardDataParams& all) {
  const Planes<T> w(all.k, all.c / all.g, product(all.kernel), all.w);
  const Chunks chunks(all, sizeof(T));
  chunks.for_each([&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ConvBackwardDataParams p = chunks.of(all, i);
      const int64_t n = chunks.first(i);
      const Planes<T> dy(p.n, p.k, product(p.out), static_cast<const T*>(all.dy) + n * chunks.y_image);
      const Planes<T> dx(p.n, p.c, product(p.in));
      p.dy = dy.data(), p.w = w.data(), p.dx = dx.data();
      conv_backward_data(p);
      dx.store(static_cast<T*>(all.dx) + n * chunks.x_image);
    }
  });
}

template <class T>
void backward_weight(const ConvBackwardWeightParams& all) {
  const int64_t cg = all.c / all.g, taps = product(all.kernel), size = all.k * cg * taps;
  const Planes<T> dw(all.k, cg, taps);
  const Chunks chunks(all, sizeof(T));
  SplitQueue queue(1, chunks.count, 1);
  chunks.for_each([&](int64_t, int64_t) {
    const Planes<T> part(all.k, cg, taps);
    for (SplitQueue::Item item; queue.next(item);) {
      ConvBackwardWeightParams p = chunks.of(all, item.split);
      const int64_t n = chunks.first(item.split);
      const Planes<T> dy(p.n, p.k, product(p.out), static_cast<const T*>(all.dy) + n * chunks.y_image);
      const Planes<T> x(p.n, p.c, product(p.in), static_cast<const T*>(all.x) + n * chunks.x_image);
      p.dy = dy.data(), p.x = x.data(), p.dw = part.data();
      conv_backward_weight(p);
      queue.wait(item);
      for (int64_t i = 0; i < size; ++i)
        dw.data()[i] = item.split == 0 ? part.data()[i] : dw.data()[i] + part.data()[i];
      queue.done(item);
    }
  });
  dw.store(all.dw);
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
