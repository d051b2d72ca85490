// Batch normalisation on its own: batchnorm_forward.h and batchnorm_backward.h with nothing before or after.
#include "fastnn/batchnorm.h"

#include "cpu/batchnorm_backward.h"
#include "cpu/batchnorm_forward.h"

namespace fastnn::cpu {
namespace {

// Stores the normalised numbers.
template <class T>
class Store {
  using A = Compute<T>;

 public:
  explicit Store(const BatchNormParams& p) : p_(p) {}

  bool takes_channels() const { return true; }
  void channel(const BatchNormPlan&, const BatchNormCoefficients<A>& k, int64_t c) const {
    const BatchNormShape& s = p_.shape;
    rows(k, c * s.L, {s.N, s.L, s.C * s.L, c, 0, s.C});
  }
  void all(const BatchNormPlan& plan, const BatchNormCoefficients<A>& k) const {
    if (plan.columns) {
      for_columns(plan, [&](int64_t at, int64_t rows, int64_t width) {
        batchnorm_ops<T>().normalize_columns(x() + at, y() + at, rows, width, k[0], k[1], k[2]);
      });
    } else {
      for_rows(p_.shape, [&](int64_t at, const BatchNormRows& r) { rows(k, at, r); });
    }
  }

 private:
  const T* x() const { return static_cast<const T*>(p_.x); }
  T* y() const { return static_cast<T*>(p_.y); }
  void rows(const BatchNormCoefficients<A>& k, int64_t at, const BatchNormRows& r) const {
    batchnorm_ops<T>().normalize_rows(x() + at, y() + at, r, k[0], k[1], k[2]);
  }

  const BatchNormParams& p_;
};

// dy is there already.
struct Given {
  bool takes_channels() const { return true; }
  void channel(int64_t) const {}
  void all(const BatchNormPlan&) const {}
};

}  // namespace

void batchnorm_forward(const BatchNormParams& p) {
  if (p.shape.N == 0 || p.shape.C == 0 || p.shape.L == 0) return;
  visit(p.dtype, [&](auto t) {
    const Store<decltype(t)> store(p);
    BatchNormForward<decltype(t), Store<decltype(t)>>(p, store).run();
  });
}

void batchnorm_backward(const BatchNormBackwardParams& p) {
  if (p.shape.N == 0 || p.shape.C == 0 || p.shape.L == 0) return;
  visit(p.dtype, [&](auto t) { BatchNormBackward<decltype(t), Given>(p, Given()).run(); });
}

}  // namespace fastnn::cpu
