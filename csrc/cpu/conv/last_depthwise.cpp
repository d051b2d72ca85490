// Depthwise convolution with channels last, registers along channels. It is bound by memory: rows of output
// go to threads in order, so that a row of the input is read once and found in the cache by the next rows.
//
//   y[o, c] = b[c] + sum over r of w[r, c] * x[o * stride + r * dilation - padding, c]
//
// Backward-data gathers: a phase (last.h) of a row of dx takes the taps that meet it. A row is cut where the
// set of taps inside the input changes. The weight's gradient is one pass over x and dy; partial sums of
// fixed ranges of rows are added up in order.
#include <algorithm>
#include <vector>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/last.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kMaxSplits = 64;  // partial sums of dw

int64_t product(const int64_t (&v)[3]) {
  return v[0] * v[1] * v[2];
}

// Positions [first, last) of one dimension whose taps inside the input are `taps`.
struct Segment {
  int64_t first, last;
  std::vector<Tap> taps;
};

std::vector<Segment> segments(const TapDim& dim) {
  std::vector<int64_t> cuts{0, dim.out};
  for (const Tap& tap : dim.taps) {  // inside from the first cut up to the second
    cuts.push_back(std::clamp<int64_t>(ceil_div(std::max<int64_t>(-tap.shift, 0), dim.stride), 0, dim.out));
    cuts.push_back(
        std::clamp<int64_t>(ceil_div(std::max<int64_t>(dim.in - tap.shift, 0), dim.stride), 0, dim.out));
  }
  std::sort(cuts.begin(), cuts.end());
  std::vector<Segment> result;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    if (cuts[i] == cuts[i + 1]) continue;
    Segment segment{cuts[i], cuts[i + 1], {}};
    for (const Tap& tap : dim.taps) {
      const int64_t at = cuts[i] * dim.stride + tap.shift;
      if (at >= 0 && at < dim.in) segment.taps.push_back(tap);
    }
    result.push_back(segment);
  }
  return result;
}

// Calls f(segment of the row, taps) for each segment of row (z, y) of a phase; x offsets are from the pixel
// (0, 0, first * stride) of the image.
template <class F>
void for_each_segment(const Phase& phase, const std::vector<Segment>& cols, const int64_t (&kernel)[3],
                      int64_t z, int64_t y, int64_t channels, std::vector<ConvTapAt>& taps, const F& f) {
  const TapDim(&dims)[3] = phase.dims;
  for (const Segment& segment : cols) {
    taps.clear();
    for (const Tap& a : dims[0].taps) {
      const int64_t iz = z * dims[0].stride + a.shift;
      if (iz < 0 || iz >= dims[0].in) continue;
      for (const Tap& b : dims[1].taps) {
        const int64_t iy = y * dims[1].stride + b.shift;
        if (iy < 0 || iy >= dims[1].in) continue;
        for (const Tap& e : segment.taps) {
          taps.push_back({((iz * dims[1].in + iy) * dims[2].in + e.shift) * channels,
                          ((a.index * kernel[1] + b.index) * kernel[2] + e.index) * channels});
        }
      }
    }
    f(segment);
  }
}

// out: all positions of y, of which a phase has every out_step-th.
template <class T>
void run(const ConvGeometry& p, const std::vector<Phase>& phases, const int64_t (&out)[3],
         const int64_t (&out_step)[3], const T* x, const T* weight, const T* bias, T* y) {
  const auto& kernels = conv_last_kernels_of<T>();
  const int64_t taps_count = product(p.kernel), channels = p.c;
  const Scratch<T> w(taps_count * channels);  // [taps, channels]
  kernels.transpose(weight, taps_count, channels, taps_count, w.data(), channels);
  std::vector<std::vector<Segment>> cols;
  for (const Phase& phase : phases) cols.push_back(segments(phase.dims[2]));
  const int64_t image = channels * phases[0].dims[0].in * phases[0].dims[1].in * phases[0].dims[2].in;
  const int64_t rows = out[0] * out[1];
  parallel_for(p.n * rows, ceil_div(kGrain, out[2] * channels * taps_count / 4 + 1),
               [&](int64_t first, int64_t last) {
                 std::vector<ConvTapAt> taps;
                 for (int64_t row = first; row < last; ++row) {
                   const int64_t at[2] = {row % rows / out[1], row % out[1]};
                   const T* image_x = x + row / rows * image;
                   for (size_t i = 0; i < phases.size(); ++i) {
                     const Phase& phase = phases[i];
                     if (at[0] % out_step[0] != phase.begin[0] || at[1] % out_step[1] != phase.begin[1])
                       continue;
                     const int64_t x_col = phase.dims[2].stride * channels, y_col = out_step[2] * channels;
                     for_each_segment(
                         phase, cols[i], p.kernel, at[0] / out_step[0], at[1] / out_step[1], channels, taps,
                         [&](const Segment& s) {
                           kernels.depthwise(
                               {image_x + s.first * x_col, x_col, taps.data(),
                                static_cast<int64_t>(taps.size()), w.data(), bias, channels, s.last - s.first,
                                y + (row * out[2] + phase.begin[2]) * channels + s.first * y_col, y_col});
                         });
                   }
                 }
               });
}

template <class T>
void forward(const ConvForwardParams& p) {
  run(p, forward_phases(p), p.out, {1, 1, 1}, static_cast<const T*>(p.x), static_cast<const T*>(p.w),
      static_cast<const T*>(p.b), static_cast<T*>(p.y));
}

template <class T>
void backward_data(const ConvBackwardDataParams& p) {
  run(p, backward_data_phases(p), p.in, p.stride, static_cast<const T*>(p.dy), static_cast<const T*>(p.w),
      static_cast<const T*>(p.b), static_cast<T*>(p.dx));
}

template <class T>
void backward_weight(const ConvBackwardWeightParams& p) {
  const auto& kernels = conv_last_kernels_of<T>();
  const int64_t taps_count = product(p.kernel), channels = p.c, size = taps_count * channels;
  const Phase phase = forward_phases(p)[0];
  const std::vector<Segment> cols = segments(phase.dims[2]);
  const int64_t rows = p.n * p.out[0] * p.out[1], splits = std::min(rows, kMaxSplits);
  const int64_t row_work = p.out[2] * size / 4 + 1;
  const Scratch<T> partial(splits * size);
  parallel_for(splits, ceil_div(kGrain, rows / splits * row_work), [&](int64_t first, int64_t last) {
    std::vector<ConvTapAt> taps;
    for (int64_t split = first; split < last; ++split) {
      T* dw = partial.data() + split * size;
      std::fill_n(dw, size, T(0));
      const Part my_rows(rows, split, splits);
      for (int64_t row = my_rows.begin; row < my_rows.begin + my_rows.size; ++row) {
        const int64_t n = row / p.out[1] / p.out[0], x_col = p.stride[2] * channels;
        const T* x = static_cast<const T*>(p.x) + n * product(p.in) * channels;
        const T* dy = static_cast<const T*>(p.dy) + row * p.out[2] * channels;
        for_each_segment(phase, cols, p.kernel, row / p.out[1] % p.out[0], row % p.out[1], channels, taps,
                         [&](const Segment& s) {
                           kernels.depthwise_weight(
                               {x + s.first * x_col, x_col, taps.data(), static_cast<int64_t>(taps.size()),
                                dy + s.first * channels, channels, s.last - s.first, dw});
                         });
      }
    }
  });
  T* dw = static_cast<T*>(p.dw);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps_count; ++t) {
      double sum = 0;
      for (int64_t split = 0; split < splits; ++split) sum += partial[split * size + t * channels + c];
      dw[c * taps_count + t] = static_cast<T>(sum);
    }
  }
}

}  // namespace

void conv_last_depthwise(const ConvForwardParams& p) {
  p.dtype == DType::kFloat64 ? forward<double>(p) : forward<float>(p);
}
void conv_last_depthwise(const ConvBackwardDataParams& p) {
  p.dtype == DType::kFloat64 ? backward_data<double>(p) : backward_data<float>(p);
}
void conv_last_depthwise(const ConvBackwardWeightParams& p) {
  p.dtype == DType::kFloat64 ? backward_weight<double>(p) : backward_weight<float>(p);
}

}  // namespace fastnn::cpu
