// Batch normalisation, forward: statistics by blocks (batchnorm_plan.h), merged in double, then
// y = (x - mean) * scale + shift. `mean` is rounded to the compute type and its rounding error goes into
// shift, so that an offset much larger than the deviation costs no digits.
#include "fastnn/batchnorm.h"

#include <cmath>

#include "cpu/batchnorm_plan.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

// Mean and M2 of `width` adjacent channels from those of their blocks, [blocks, stride].
void merge(const BatchNormPlan& plan, const double* means, const double* m2s, int64_t stride, int width,
           double* mean, double* m2) {
  for (int j = 0; j < width; ++j) mean[j] = m2[j] = 0;
  for (int64_t i = 0; i < plan.blocks; ++i) {
    const double count = plan.block(i).count();
    for (int j = 0; j < width; ++j) mean[j] += count * means[i * stride + j];
  }
  const double n = static_cast<double>(plan.per_channel());
  for (int j = 0; j < width; ++j) mean[j] /= n;
  for (int64_t i = 0; i < plan.blocks; ++i) {
    const double count = plan.block(i).count();
    for (int j = 0; j < width; ++j) {
      const double d = means[i * stride + j] - mean[j];
      m2[j] += m2s[i * stride + j] + count * d * d;
    }
  }
}

template <class T>
class Forward {
  using A = Compute<T>;

 public:
  explicit Forward(const BatchNormParams& p) : p_(p), plan_(p.shape), coefficients_(3 * p.shape.C) {}

  void run() const {
    if (!p_.training) {
      for (int64_t c = 0; c < C(); ++c)
        set(c, at(p_.running_mean, c), 1 / std::sqrt(static_cast<double>(at(p_.running_var, c)) + p_.eps));
      normalize();
    } else if (p_.shape.channels_last) {
      column_statistics();
      normalize();
    } else if (plan_.by_channel(3)) {
      channel_by_channel();
    } else {
      block_by_block();
      normalize();
    }
  }

 private:
  int64_t C() const { return p_.shape.C; }
  const T* x() const { return static_cast<const T*>(p_.x); }
  T* y() const { return static_cast<T*>(p_.y); }
  A* mean() const { return coefficients_.data(); }
  A* scale() const { return mean() + C(); }
  A* shift() const { return scale() + C(); }
  static A at(const void* p, int64_t c) { return static_cast<const A*>(p)[c]; }
  static A& at(void* p, int64_t c) { return static_cast<A*>(p)[c]; }

  void set(int64_t c, double mean_c, double invstd) const {
    const double a = invstd * (p_.weight ? at(p_.weight, c) : 1);
    mean()[c] = static_cast<A>(mean_c);
    scale()[c] = static_cast<A>(a);
    const double lost = mean_c - static_cast<double>(mean()[c]);
    const double b = p_.bias ? at(p_.bias, c) : 0;
    shift()[c] = static_cast<A>(lost == lost && lost != 0 ? b - lost * a : b);
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
    const BatchNormShape& s = p_.shape;
    const BatchNormOps<T>& ops = batchnorm_ops<T>();
    parallel_for(s.C, plan_.channel_grain(3), [&](int64_t begin, int64_t end) {
      const Scratch<double> means(plan_.blocks), m2s(plan_.blocks);
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t i = 0; i < plan_.blocks; ++i) block_moments(c, i, &means[i], &m2s[i]);
        double mean_c, m2;
        merge(plan_, means.data(), m2s.data(), 1, 1, &mean_c, &m2);
        finish(c, mean_c, m2);
        ops.normalize_rows(x() + c * s.L, y() + c * s.L, {s.N, s.L, s.C * s.L, c, 0, s.C}, mean(), scale(),
                           shift());
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
      merge(plan_, &means[c * plan_.blocks], &m2s[c * plan_.blocks], 1, 1, &mean_c, &m2);
      finish(c, mean_c, m2);
    }
  }

  void column_statistics() const {
    const Scratch<double> means(plan_.blocks * C()), m2s(plan_.blocks * C());
    const int64_t parts = plan_.column_tasks();
    const int64_t visits = 2 * plan_.group * std::min(C(), BatchNormPlan::kColumns);
    parallel_for(plan_.blocks * parts, std::max<int64_t>(1, kGrain / visits),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t k = begin; k < end; ++k) {
                     const BatchNormPlan::Block b = plan_.block(k / parts);
                     const int64_t c = k % parts * BatchNormPlan::kColumns, to = k / parts * C() + c;
                     batchnorm_ops<T>().column_moments(x() + b.row * C() + c, b.rows,
                                                       std::min(C() - c, BatchNormPlan::kColumns), C(),
                                                       &means[to], &m2s[to]);
                   }
                 });
    for_channel_groups(C(), 2 * plan_.blocks, [&](int64_t c, int width) {
      double mean_c[8], m2[8];
      merge(plan_, &means[c], &m2s[c], C(), width, mean_c, m2);
      for (int j = 0; j < width; ++j) finish(c + j, mean_c[j], m2[j]);
    });
  }

  void normalize() const {
    if (p_.shape.channels_last) {
      for_rows(p_.shape, [&](int64_t at, int64_t rows) {
        batchnorm_ops<T>().normalize_columns(x() + at, y() + at, rows, C(), mean(), scale(), shift());
      });
    } else {
      for_planes(p_.shape, [&](int64_t at, const BatchNormRows& rows) {
        batchnorm_ops<T>().normalize_rows(x() + at, y() + at, rows, mean(), scale(), shift());
      });
    }
  }

  const BatchNormParams& p_;
  const BatchNormPlan plan_;
  const Scratch<A> coefficients_;  // [3, C]: mean, scale, shift
};

}  // namespace

void batchnorm_forward(const BatchNormParams& p) {
  if (p.shape.N == 0 || p.shape.C == 0 || p.shape.L == 0) return;
  visit(p.dtype, [&](auto t) { Forward<decltype(t)>(p).run(); });
}

}  // namespace fastnn::cpu
