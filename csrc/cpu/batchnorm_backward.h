// Batch normalisation, backward. With S = sum(dy) and P = sum(dy * (x - mean)) of a channel of n elements:
//   dbias = S,  dweight = P * invstd,
//   dx = (dy - S / n - (x - mean) * P * invstd^2 / n) * weight * invstd      (batch statistics)
//   dx = dy * weight * invstd                                                (running statistics)
// Two passes over x and dy: the sums by blocks (batchnorm_plan.h), then dx, which finds the channel in L2
// when a thread takes whole channels. Nothing but x, mean and invstd is kept from the forward pass.
//
// dy may have to be made first, by going back through the layers behind: that is the source's, with
//   bool takes_channels() const;             // channel() right before that channel's sums
//   void channel(c) const;                   // makes dy of one channel, on the calling thread
//   void all(plan) const;                    // makes all of dy, in parallel
#pragma once
#include <cmath>

#include "cpu/batchnorm_plan.h"

namespace fastnn::cpu {

template <class T, class Source>
class BatchNormBackward {
  using A = Compute<T>;

 public:
  BatchNormBackward(const BatchNormBackwardParams& p, const Source& source)
      : p_(p), source_(source), plan_(p.shape), coefficients_(plan_, 5), wants_dx_(p.dx != nullptr) {}

  void run() const {
    const bool sums = p_.training || p_.dweight || p_.dbias;
    for (int64_t c = 0; c < C(); ++c) {
      coefficients_.set(0, c, static_cast<const A*>(p_.mean)[c]);
      coefficients_.set(3, c, weight(c) * invstd(c));
      coefficients_.set(4, c, 0);
    }
    if (sums && !plan_.columns && source_.takes_channels() && plan_.by_channel(4)) {
      channel_by_channel();
      return;
    }
    source_.all(plan_);
    if (sums) plan_.columns ? column_sums() : block_by_block();
    if (wants_dx_) input_gradient();
  }

 private:
  int64_t C() const { return p_.shape.C; }
  const T* x() const { return static_cast<const T*>(p_.x); }
  const T* dy() const { return static_cast<const T*>(p_.dy); }
  T* dx() const { return static_cast<T*>(p_.dx); }
  A* mean() const { return coefficients_[0]; }
  A* slope() const { return coefficients_[1]; }
  A* shift() const { return coefficients_[2]; }
  A* scale() const { return coefficients_[3]; }
  A* zero() const { return coefficients_[4]; }
  double weight(int64_t c) const { return p_.weight ? static_cast<const A*>(p_.weight)[c] : 1; }
  double invstd(int64_t c) const {
    return p_.training ? static_cast<const A*>(p_.invstd)[c]
                       : 1 / std::sqrt(static_cast<double>(static_cast<const A*>(p_.var)[c]) + p_.eps);
  }

  // Everything that the sums of channel c decide.
  void finish(int64_t c, double sum, double dot) const {
    const double r = invstd(c);
    if (p_.dweight) static_cast<A*>(p_.dweight)[c] = static_cast<A>(dot * r);
    if (p_.dbias) static_cast<A*>(p_.dbias)[c] = static_cast<A>(sum);
    const double n = static_cast<double>(plan_.per_channel());
    coefficients_.set(1, c, dot / n * r * r);
    coefficients_.set(2, c, sum / n);
  }

  void rows_gradient(int64_t at, const BatchNormRows& rows) const {
    const BatchNormOps<T>& ops = batchnorm_ops<T>();
    if (p_.training) {
      ops.grad_rows(x() + at, dy() + at, dx() + at, rows, mean(), slope(), shift(), scale());
    } else {
      ops.normalize_rows(dy() + at, dx() + at, rows, zero(), scale(), zero());
    }
  }

  void block_sums(int64_t c, int64_t i, double* sum, double* dot) const {
    const BatchNormPlan::Block b = plan_.block(i);
    const int64_t at = plan_.start(c, b);
    batchnorm_ops<T>().row_sums(x() + at, dy() + at, b.rows, b.length, C() * p_.shape.L, mean()[c], sum, dot);
  }

  void channel_by_channel() const {
    const BatchNormShape& s = p_.shape;
    parallel_for(s.C, plan_.channel_grain(4), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        source_.channel(c);
        double sum = 0, dot = 0;
        for (int64_t i = 0; i < plan_.blocks; ++i) {
          double sum_i, dot_i;
          block_sums(c, i, &sum_i, &dot_i);
          sum += sum_i;
          dot += dot_i;
        }
        finish(c, sum, dot);
        if (wants_dx_) rows_gradient(c * s.L, {s.N, s.L, s.C * s.L, c, 0, s.C});
      }
    });
  }

  void block_by_block() const {
    const Scratch<double> sums(C() * plan_.blocks), dots(C() * plan_.blocks);
    parallel_for(C() * plan_.blocks, std::max<int64_t>(1, kGrain / BatchNormPlan::kBlock),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t k = begin; k < end; ++k)
                     block_sums(k / plan_.blocks, k % plan_.blocks, &sums[k], &dots[k]);
                 });
    add_blocks(sums.data(), dots.data(), plan_.blocks, 1);
  }

  void column_sums() const {
    const int64_t width = plan_.width;
    const Scratch<double> sums(plan_.blocks * width), dots(plan_.blocks * width);
    for_column_blocks(plan_, [&](int64_t first, int64_t rows, int64_t column, int64_t columns, int64_t to) {
      batchnorm_ops<T>().column_sums(x() + first, dy() + first, rows, columns, width, mean() + column,
                                     &sums[to], &dots[to]);
    });
    add_blocks(sums.data(), dots.data(), plan_.fold, width);
  }

  // Channel c's sums are the `fold` numbers from c * channel_stride on, in each of the blocks.
  void add_blocks(const double* sums, const double* dots, int64_t channel_stride,
                  int64_t block_stride) const {
    for_channel_groups(C(), plan_.blocks * plan_.fold, [&](int64_t c, int channels) {
      double sum[8] = {}, dot[8] = {};
      for (int64_t i = 0; i < plan_.blocks; ++i) {
        for (int j = 0; j < channels; ++j) {
          const int64_t from = i * block_stride + (c + j) * channel_stride;
          for (int64_t k = from; k < from + plan_.fold; ++k) {
            sum[j] += sums[k];
            dot[j] += dots[k];
          }
        }
      }
      for (int j = 0; j < channels; ++j) finish(c + j, sum[j], dot[j]);
    });
  }

  void input_gradient() const {
    coefficients_.repeat();
    const BatchNormOps<T>& ops = batchnorm_ops<T>();
    if (!plan_.columns) {
      for_rows(p_.shape, [&](int64_t at, const BatchNormRows& rows) { rows_gradient(at, rows); });
    } else if (p_.training) {
      for_columns(plan_, [&](int64_t at, int64_t rows, int64_t width) {
        ops.grad_columns(x() + at, dy() + at, dx() + at, rows, width, mean(), slope(), shift(), scale());
      });
    } else {
      for_columns(plan_, [&](int64_t at, int64_t rows, int64_t width) {
        ops.normalize_columns(dy() + at, dx() + at, rows, width, zero(), scale(), zero());
      });
    }
  }

  const BatchNormBackwardParams& p_;
  const Source& source_;
  const BatchNormPlan plan_;
  const BatchNormCoefficients<A> coefficients_;  // mean, slope, shift, scale, zero
  const bool wants_dx_;
};

}  // namespace fastnn::cpu
