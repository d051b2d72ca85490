// Squared error: (x - t)^2, slope 2 (x - t). Binary cross-entropy of logits: (1 - t) x + log(1 + exp(-x)),
// slope sigmoid(x) - t; with factors as in fastnn/loss_pointwise.h. One pass in each direction; bytes decide,
// so nothing but x, t and the factors is read.
#include "cpu/kernels/loss_pointwise.h"

#include "cpu/simd/math.h"
#include "cpu/simd/moments.h"

namespace {

using namespace fastnn;

// No factors, known to the compiler: then there is nothing to multiply with.
struct NoFactors {};

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

// The factors of a run of elements: the same for all, or one after the other.
template <class T>
struct Factors {
  using V = Vec<Compute<T>>;
  const T* data;
  bool each;
  FASTNN_INLINE V operator()(int64_t i, int n) const {
    return data == nullptr ? V(1) : each ? load_n(data + i, n) : V(to_compute(*data));
  }
};

template <class T>
FASTNN_INLINE Factors<T> factors_at(const ElementWeights& w, int64_t i, int64_t& n) {
  const T* data = static_cast<const T*>(w.data);
  if (data == nullptr) return {nullptr, false};
  const bool each = w.inner == 1;
  const int64_t left = each ? w.length - i % w.length : w.inner - i % w.inner;
  if (left < n) n = left;
  return {data + i / w.inner % w.length, each};
}

// f.operator()<T, kind>(first, count, weight, positive_weight) over runs of [begin, end), in each of which
// the factors are of one form.
template <class Params, class F>
FASTNN_INLINE void each_run(const Params& p, int64_t begin, int64_t end, const F& f) {
  const bool plain = p.weight.data == nullptr && p.positive_weight.data == nullptr;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const auto of_kind = [&]<PointwiseLoss kind>() {
      if (plain) return f.template operator()<T, kind>(begin, end - begin, NoFactors(), NoFactors());
      for (int64_t i = begin; i < end;) {
        int64_t n = end - i;
        const Factors<T> weight = factors_at<T>(p.weight, i, n);
        const Factors<T> positive = factors_at<T>(p.positive_weight, i, n);
        // The run may have become shorter by the second: what the first has beyond its end is not read.
        f.template operator()<T, kind>(i, n, weight, positive);
        i += n;
      }
    };
    if (p.kind == PointwiseLoss::kSquared)
      of_kind.template operator()<PointwiseLoss::kSquared>();
    else
      of_kind.template operator()<PointwiseLoss::kBinaryLogits>();
  });
}

// Those of the elements i to i + n with their factors.
template <PointwiseLoss kind, class V, class W>
FASTNN_INLINE V weighted_value(V x, V t, const W& weight, const W& positive, int64_t i, int n) {
  if constexpr (__is_same(W, NoFactors))
    return value<kind>(x, t);
  else if constexpr (kind == PointwiseLoss::kSquared)
    return value<kind>(x, t) * weight(i, n);
  else
    return fma(V(1) - t, x, fma(positive(i, n) - V(1), t, V(1)) * softplus(-x)) * weight(i, n);
}
template <PointwiseLoss kind, class V, class W>
FASTNN_INLINE V weighted_slope(V x, V t, const W& weight, const W& positive, int64_t i, int n) {
  if constexpr (__is_same(W, NoFactors)) {
    return slope<kind>(x, t);
  } else if constexpr (kind == PointwiseLoss::kSquared) {
    return slope<kind>(x, t) * weight(i, n);
  } else {
    const V p = positive(i, n);
    return fma(fma(p - V(1), t, V(1)), sigmoid(x), -(p * t)) * weight(i, n);
  }
}

void values(const PointwiseLossParams& p, int64_t begin, int64_t end) {
  each_run(p, begin, end, [&]<class T, PointwiseLoss kind>(int64_t first, int64_t count, auto w, auto pos) {
    const T *x = static_cast<const T*>(p.x) + first, *t = static_cast<const T*>(p.target) + first;
    T* y = static_cast<T*>(p.y) + first;
    for_each_vec<Vec<Compute<T>>>(count, [&](int64_t i, int n) {
      store_n(y + i, weighted_value<kind>(load_n(x + i, n), load_n(t + i, n), w, pos, i, n), n);
    });
  });
}

double sum(const PointwiseLossParams& p, int64_t begin, int64_t end) {
  double total = 0;
  each_run(p, begin, end, [&]<class T, PointwiseLoss kind>(int64_t first, int64_t count, auto w, auto pos) {
    using V = Vec<Compute<T>>;
    const T *x = static_cast<const T*>(p.x) + first, *t = static_cast<const T*>(p.target) + first;
    Sums<V> sums;
    for_each_unrolled<V>(count, [&](int64_t i, int n, int slot) {
      // The loss of lanes beyond the end, read as 0, is not 0.
      const V loss = weighted_value<kind>(load_n(x + i, n), load_n(t + i, n), w, pos, i, n);
      sums.v[slot] += first_lanes(loss, n);
    });
    total += sums.total();
  });
  return total;
}

void backward(const PointwiseLossBackwardParams& p, int64_t begin, int64_t end) {
  each_run(p, begin, end, [&]<class T, PointwiseLoss kind>(int64_t first, int64_t count, auto w, auto pos) {
    using C = Compute<T>;
    using V = Vec<C>;
    const T *x = static_cast<const T*>(p.x) + first, *t = static_cast<const T*>(p.target) + first;
    T* dx = static_cast<T*>(p.dx) + first;
    const T* dy = p.dy ? static_cast<const T*>(p.dy) + first : nullptr;
    const V common(static_cast<C>(p.slope));
    for_each_vec<V>(count, [&](int64_t i, int n) {
      const V g = weighted_slope<kind>(load_n(x + i, n), load_n(t + i, n), w, pos, i, n);
      store_n(dx + i, g * (dy ? load_n(dy + i, n) : common), n);
    });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const PointwiseLossKernels loss_pointwise;
const PointwiseLossKernels loss_pointwise = {values, sum, backward};
}  // namespace fastnn::cpu::FASTNN_ISA
