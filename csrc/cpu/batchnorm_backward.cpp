// Batch normalisation, backward. With S = sum(dy) and P = sum(dy * (x - mean)) of a channel of n elements:
//   dbias = S,  dweight = P * invstd,
//   dx = (dy - S / n - (x - mean) * P * invstd^2 / n) * weight * invstd      (batch statistics)
//   dx = dy * weight * invstd                                                (running statistics)
// Two passes over x and dy: the sums by blocks (batchnorm_plan.h), then dx, which finds the channel in L2
// when a thread takes whole channels. Nothing but x, mean and invstd is kept from the forward pass.
#include <cmath>

#include "cpu/batchnorm_plan.h"
#include "cpu/scratch.h"
#include "fastnn/batchnorm.h"

namespace fastnn::cpu {
namespace {

template <class T>
class Backward {
  using A = Compute<T>;

 public:
  explicit Backward(const BatchNormBackwardParams& p)
      : p_(p), plan_(p.shape), coefficients_(4 * p.shape.C), wants_dx_(p.dx != nullptr) {}

  void run() const {
    const bool sums = p_.training || p_.dweight || p_.dbias;
    if (!p_.training) {
      for (int64_t c = 0; c < C(); ++c) set_running(c);
    }
    if (sums && p_.shape.channels_last) {
      column_sums();
    } else if (sums && plan_.by_channel(4)) {
      channel_by_channel();
      return;
    } else if (sums) {
      block_by_block();
    }
    if (wants_dx_) input_gradient();
  }

 private:
  int64_t C() const { return p_.shape.C; }
  const T* x() const { return static_cast<const T*>(p_.x); }
  const T* dy() const { return static_cast<const T*>(p_.dy); }
  T* dx() const { return static_cast<T*>(p_.dx); }
  const A* mean() const { return static_cast<const A*>(p_.mean); }
  A* slope() const { return coefficients_.data(); }
  A* shift() const { return slope() + C(); }
  A* scale() const { return shift() + C(); }
  A* zero() const { return scale() + C(); }
  double weight(int64_t c) const { return p_.weight ? static_cast<const A*>(p_.weight)[c] : 1; }
  double invstd(int64_t c) const {
    return p_.training ? static_cast<const A*>(p_.invstd)[c]
                       : 1 / std::sqrt(static_cast<double>(static_cast<const A*>(p_.var)[c]) + p_.eps);
  }

  void set_running(int64_t c) const {
    zero()[c] = 0;
    scale()[c] = static_cast<A>(weight(c) * invstd(c));
  }

  // Everything that the sums of channel c decide.
  void finish(int64_t c, double sum, double dot) const {
    const double r = invstd(c);
    if (p_.dweight) static_cast<A*>(p_.dweight)[c] = static_cast<A>(dot * r);
    if (p_.dbias) static_cast<A*>(p_.dbias)[c] = static_cast<A>(sum);
    if (p_.training) {
      const double n = static_cast<double>(plan_.per_channel());
      shift()[c] = static_cast<A>(sum / n);
      slope()[c] = static_cast<A>(dot / n * r * r);
      scale()[c] = static_cast<A>(weight(c) * r);
    }
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
    const Scratch<double> sums(plan_.blocks * C()), dots(plan_.blocks * C());
    const int64_t parts = plan_.column_tasks();
    const int64_t visits = 2 * plan_.group * std::min(C(), BatchNormPlan::kColumns);
    parallel_for(plan_.blocks * parts, std::max<int64_t>(1, kGrain / visits),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t k = begin; k < end; ++k) {
                     const BatchNormPlan::Block b = plan_.block(k / parts);
                     const int64_t c = k % parts * BatchNormPlan::kColumns, at = b.row * C() + c,
                                   to = k / parts * C() + c;
                     batchnorm_ops<T>().column_sums(x() + at, dy() + at, b.rows,
                                                    std::min(C() - c, BatchNormPlan::kColumns), C(),
                                                    mean() + c, &sums[to], &dots[to]);
                   }
                 });
    add_blocks(sums.data(), dots.data(), 1, C());
  }

  void add_blocks(const double* sums, const double* dots, int64_t channel_stride,
                  int64_t block_stride) const {
    for_channel_groups(C(), plan_.blocks, [&](int64_t c, int width) {
      double sum[8] = {}, dot[8] = {};
      for (int64_t i = 0; i < plan_.blocks; ++i) {
        for (int j = 0; j < width; ++j) {
          sum[j] += sums[i * block_stride + (c + j) * channel_stride];
          dot[j] += dots[i * block_stride + (c + j) * channel_stride];
        }
      }
      for (int j = 0; j < width; ++j) finish(c + j, sum[j], dot[j]);
    });
  }

  void input_gradient() const {
    const BatchNormOps<T>& ops = batchnorm_ops<T>();
    if (!p_.shape.channels_last) {
      for_planes(p_.shape, [&](int64_t at, const BatchNormRows& rows) { rows_gradient(at, rows); });
    } else if (p_.training) {
      for_rows(p_.shape, [&](int64_t at, int64_t rows) {
        ops.grad_columns(x() + at, dy() + at, dx() + at, rows, C(), mean(), slope(), shift(), scale());
      });
    } else {
      for_rows(p_.shape, [&](int64_t at, int64_t rows) {
        ops.normalize_columns(dy() + at, dx() + at, rows, C(), zero(), scale(), zero());
      });
    }
  }

  const BatchNormBackwardParams& p_;
  const BatchNormPlan plan_;
  const Scratch<A> coefficients_;  // [4, C]: slope, shift, scale, zero
  const bool wants_dx_;
};

}  // namespace

void batchnorm_backward(const BatchNormBackwardParams& p) {
  if (p.shape.N == 0 || p.shape.C == 0 || p.shape.L == 0) return;
  visit(p.dtype, [&](auto t) { Backward<decltype(t)>(p).run(); });
}

}  // namespace fastnn::cpu
