// Batch normalisation, forward: statistics by blocks (batchnorm_plan.h), merged in double, then
// y = (x - mean) * scale + shift. `mean` is rounded to the compute type and its rounding error goes into
// shift, so that an offset much larger than the deviation costs no digits.
//
// What happens to the normalised numbers is the writer's: batchnorm.cpp stores them, chain.cpp sends them on
// to the next layers while they are in cache. A writer has
//   bool takes_channels() const;                 // channel(), plane after plane, right after the statistics
//   void channel(plan, coefficients, c) const;   // the rows of one channel, on the calling thread
//   void all(plan, coefficients) const;          // everything, in parallel; coefficients are repeated
#pragma once
#include <cmath>

#include "cpu/batchnorm_plan.h"

namespace fastnn::cpu {

// Mean and M2 of `channels` adjacent channels from those of their blocks, [blocks, stride].
inline void merge_moments(const BatchNormPlan& plan, const double* means, const double* m2s, int64_t stride,
                          int channels, double* mean, double* m2) {
  const int64_t fold = plan.fold;
  for (int j = 0; j < channels; ++j) mean[j] = m2[j] = 0;
  for (int64_t i = 0; i < plan.blocks; ++i) {
    const double count = plan.block(i).count();
    for (int j = 0; j < channels; ++j)
      for (int64_t k = j * fold; k < (j + 1) * fold; ++k) mean[j] += count * means[i * stride + k];
  }
  const double n = static_cast<double>(plan.per_channel());
  for (int j = 0; j < channels; ++j) mean[j] /= n;
  for (int64_t i = 0; i < plan.blocks; ++i) {
    const double count = plan.block(i).count();
    for (int j = 0; j < channels; ++j) {
      for (int64_t k = j * fold; k < (j + 1) * fold; ++k) {
        const double d = means[i * stride + k] - mean[j];
        m2[j] += m2s[i * stride + k] + count * d * d;
      }
    }
  }
}

template <class T, class Writer>
class BatchNormForward {
  using A = Compute<T>;

 public:
  BatchNormForward(const BatchNormParams& p, const Writer& writer)
      : p_(p), writer_(writer), plan_(p.shape), coefficients_(plan_, 3) {}

  void run() const {
    if (!p_.training) {
      for (int64_t c = 0; c < C(); ++c)
        set(c, at(p_.running_mean, c), 1 / std::sqrt(static_cast<double>(at(p_.running_var, c)) + p_.eps));
      normalize();
    } else if (plan_.columns) {
      column_statistics();
      normalize();
    } else if (writer_.takes_channels() && plan_.by_channel(3)) {
      channel_by_channel();
    } else {
      block_by_block();
      normalize();
    }
  }

 private:
  int64_t C() const { return p_.shape.C; }
  const T* x() const { return static_cast<const T*>(p_.x); }
  static A at(const void* p, int64_t c) { return static_cast<const A*>(p)[c]; }
  static A& at(void* p, int64_t c) { return static_cast<A*>(p)[c]; }

  void set(int64_t c, double mean_c, double invstd) const {
    const double a = invstd * (p_.weight ? at(p_.weight, c) : 1);
    const double lost = mean_c - static_cast<double>(static_cast<A>(mean_c));
    const double b = p_.bias ? at(p_.bias, c) : 0;
    coefficients_.set(0, c, mean_c);
    coefficients_.set(1, c, a);
    coefficients_.set(2, c, lost == lost && lost != 0 ? b - lost * a : b);
  }

  // Everything that the statistics of channel c decide.
  void finish(int64_t c, double mean_c, double m2) const {
    if (!std::isfinite(m2)) {
      const BatchNormShape& s = p_.shape;
      if (s.channels_last) {
        batchnorm_ops<T>().wide_moments(x() + c, s.N * s.L, s.C, 1, 1, &mean_c, &m2);
      } else {
        batchnorm_ops<T>().wide_moments(x() + c * s.L, s.N, s.C * s.L, s.L, 1, &mean_c, &m2);
      }
    }
    const double n = static_cast<double>(plan_.per_channel());
    const double var = m2 / n;
    const double invstd = var == 0 && p_.eps == 0 ? 0 : 1 / std::sqrt(var + p_.eps);
    at(p_.save_mean, c) = static_cast<A>(mean_c);
    at(p_.save_invstd, c) = static_cast<A>(invstd);
    if (p_.running_mean) update(at(p_.running_mean, c), mean_c);
    if (p_.running_var) update(at(p_.running_var, c), m2 / (n - 1));
    set(c, mean_c, invstd);
  }
  void update(A& running, double now) const {
    running = static_cast<A>(p_.momentum * now + (1 - p_.momentum) * static_cast<double>(running));
  }

  void block_moments(int64_t c, int64_t i, double* mean_i, double* m2_i) const {
    const BatchNormPlan::Block b = plan_.block(i);
    batchnorm_ops<T>().row_moments(x() + plan_.start(c, b), b.rows, b.length, C() * p_.shape.L, mean_i, m2_i);
  }

  void channel_by_channel() const {
    parallel_for(C(), plan_.channel_grain(3), [&](int64_t begin, int64_t end) {
      const Scratch<double> means(plan_.blocks), m2s(plan_.blocks);
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t i = 0; i < plan_.blocks; ++i) block_moments(c, i, &means[i], &m2s[i]);
        double mean_c, m2;
        merge_moments(plan_, means.data(), m2s.data(), 1, 1, &mean_c, &m2);
        finish(c, mean_c, m2);
        writer_.channel(plan_, coefficients_, c);
      }
    });
  }

  void block_by_block() const {
    const Scratch<double> means(C() * plan_.blocks), m2s(C() * plan_.blocks);
    parallel_for(C() * plan_.blocks, std::max<int64_t>(1, kGrain / BatchNormPlan::kBlock),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t k = begin; k < end; ++k)
                     block_moments(k / plan_.blocks, k % plan_.blocks, &means[k], &m2s[k]);
                 });
    for (int64_t c = 0; c < C(); ++c) {
      double mean_c, m2;
      merge_moments(plan_, &means[c * plan_.blocks], &m2s[c * plan_.blocks], 1, 1, &mean_c, &m2);
      finish(c, mean_c, m2);
    }
  }

  void column_statistics() const {
    const int64_t width = plan_.width;
    const Scratch<double> means(plan_.blocks * width), m2s(plan_.blocks * width);
    for_column_blocks(plan_, [&](int64_t first, int64_t rows, int64_t, int64_t columns, int64_t to) {
      batchnorm_ops<T>().column_moments(x() + first, rows, columns, width, &means[to], &m2s[to]);
    });
    for_channel_groups(C(), 2 * plan_.blocks * plan_.fold, [&](int64_t c, int channels) {
      double mean_c[8], m2[8];
      merge_moments(plan_, &means[c * plan_.fold], &m2s[c * plan_.fold], width, channels, mean_c, m2);
      for (int j = 0; j < channels; ++j) finish(c + j, mean_c[j], m2[j]);
    });
  }

  void normalize() const {
    coefficients_.repeat();
    writer_.all(plan_, coefficients_);
  }

  const BatchNormParams& p_;
  const Writer& writer_;
  const BatchNormPlan plan_;
  const BatchNormCoefficients<A> coefficients_;  // mean, scale, shift
};

}  // namespace fastnn::cpu
