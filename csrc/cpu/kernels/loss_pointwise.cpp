// Squared error: (x - t)^2, slope 2 (x - t). Binary cross-entropy of logits: (1 - t) x + log(1 + exp(-x)),
// slope sigmoid(x) - t. One pass in each direction; bytes decide, so nothing but x and t is read.
#include "cpu/kernels/loss_pointwise.h"

#include "cpu/simd/math.h"
#include "cpu/simd/moments.h"

namespace {

using namespace fastnn;

template <PointwiseLoss kind, class V>
FASTNN_INLINE V value(V x, V t) {
  if constexpr (kind == PointwiseLoss::kSquared)
    return (x - t) * (x - t);
  else
    return fma(V(1) - t, x, softplus(-x));
}
template <PointwiseLoss kind, class V>
FASTNN_INLINE V slope(V x, V t) {
  if constexpr (kind == PointwiseLoss::kSquared)
    return (x - t) + (x - t);
  else
    return sigmoid(x) - t;
}

// f.operator()<T, kind>() for the element type and the loss of p.
template <class Params, class F>
FASTNN_INLINE void choose(const Params& p, const F& f) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.kind == PointwiseLoss::kSquared)
      f.template operator()<T, PointwiseLoss::kSquared>();
    else
      f.template operator()<T, PointwiseLoss::kBinaryLogits>();
  });
}

void values(const PointwiseLossParams& p, int64_t begin, int64_t end) {
  choose(p, [&]<class T, PointwiseLoss kind>() {
    const T *x = static_cast<const T*>(p.x) + begin, *t = static_cast<const T*>(p.target) + begin;
    T* y = static_cast<T*>(p.y) + begin;
    for_each_vec<Vec<Compute<T>>>(end - begin, [&](int64_t i, int n) {
      store_n(y + i, value<kind>(load_n(x + i, n), load_n(t + i, n)), n);
    });
  });
}

double sum(const PointwiseLossParams& p, int64_t begin, int64_t end) {
  double total = 0;
  choose(p, [&]<class T, PointwiseLoss kind>() {
    using V = Vec<Compute<T>>;
    const T *x = static_cast<const T*>(p.x) + begin, *t = static_cast<const T*>(p.target) + begin;
    Sums<V> sums;
    for_each_unrolled<V>(end - begin, [&](int64_t i, int n, int slot) {
      // The loss of lanes beyond the end, read as 0, is not 0.
      sums.v[slot] += first_lanes(value<kind>(load_n(x + i, n), load_n(t + i, n)), n);
    });
    total = sums.total();
  });
  return total;
}

void backward(const PointwiseLossBackwardParams& p, int64_t begin, int64_t end) {
  choose(p, [&]<class T, PointwiseLoss kind>() {
    using C = Compute<T>;
    using V = Vec<C>;
    const T *x = static_cast<const T*>(p.x) + begin, *t = static_cast<const T*>(p.target) + begin;
    T* dx = static_cast<T*>(p.dx) + begin;
    const T* dy = p.dy ? static_cast<const T*>(p.dy) + begin : nullptr;
    const V common(static_cast<C>(p.slope));
    for_each_vec<V>(end - begin, [&](int64_t i, int n) {
      const V g = slope<kind>(load_n(x + i, n), load_n(t + i, n));
      store_n(dx + i, g * (dy ? load_n(dy + i, n) : common), n);
    });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const PointwiseLossKernels loss_pointwise;
const PointwiseLossKernels loss_pointwise = {values, sum, backward};
}  // namespace fastnn::cpu::FASTNN_ISA
