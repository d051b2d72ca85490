// Cross-entropy of a distribution q, in terms of d_c = peak - x_c: loss = sum q_c d_c + Q log(sum exp(-d)),
// Q = sum q_c. Backward: dx_c = dy (Q softmax_c - q_c). See fastnn/loss_soft.h for q.
//
// As for class indices two passes over a row that stays in cache, one backward, and two numbers kept of a
// position; with probabilities Q is a third. Of class indices q is a spread over all classes and a spike.
#include "cpu/kernels/loss_soft.h"

#include "cpu/kernels/loss_targets.h"
#include "cpu/simd/math.h"
#include "cpu/simd/moments.h"

namespace {

using namespace fastnn;

constexpr int64_t kChain = 32;  // additions in a row, the sums of which are added in double

// kHard: of class indices.
template <class T, bool kHard>
struct Distribution {
  using C = Compute<T>;
  using V = Vec<C>;
  Targets<C> hard;
  const T* probability;
  C share, rest, mass;  // share: of every class, times its weight; mass: of the spread, without the spike

  FASTNN_INLINE Distribution(const SoftTargets& t, int64_t classes)
      : hard(t.hard),
        probability(static_cast<const T*>(t.probability)),
        share(static_cast<C>(t.smoothing / static_cast<double>(classes))),
        rest(static_cast<C>(1 - t.smoothing)),
        mass(static_cast<C>(t.smoothing / static_cast<double>(classes) * t.weight_sum)) {}

  FASTNN_INLINE bool counts(int64_t position) const { return !kHard || hard.counts(position); }
  FASTNN_INLINE C spike(int64_t position) const { return rest * hard.weight(position); }
  // q of n numbers of the input, whose classes have the weights w; without the spike.
  FASTNN_INLINE V spread(V w, int64_t offset, int n) const {
    return w * (kHard ? V(share) : fma(load_n(probability + offset, n), V(rest), V(share)));
  }
  FASTNN_INLINE V weights(int64_t c, int n) const {
    return hard.class_weight ? load_n(hard.class_weight + c, n) : V(C(1));
  }
  FASTNN_INLINE C weight(int64_t c) const { return hard.class_weight ? hard.class_weight[c] : C(1); }
};

// f.operator()<T, kHard>() for the element type and the targets of p.
template <class Params, class F>
FASTNN_INLINE void choose(const Params& p, const F& f) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    p.target.probability ? f.template operator()<T, false>() : f.template operator()<T, true>();
  });
}

template <class C>
FASTNN_INLINE C log_of(C x) {
  return log(Vec<C>(x))[0];
}

template <class T, bool kHard>
void row(const SoftCrossEntropyParams& p, int64_t position) {
  using C = Compute<T>;
  using V = Vec<C>;
  const Distribution<T, kHard> q(p.target, p.C);
  const T* x = static_cast<const T*>(p.x) + position * p.C;
  const V peak = peak_of_row(x, p.C);
  WideSum<C> total, distance, mass;
  for (int64_t block = 0; block < p.C; block += kChain * V::N) {
    V exponentials(C(0)), distances(C(0)), masses(C(0));
    for_each_vec<V>(p.C - block < kChain * V::N ? p.C - block : kChain * V::N, [&](int64_t j, int n) {
      const int64_t c = block + j;
      const V logits = load_n(x + c, n);
      const V part = q.spread(q.weights(c, n), position * p.C + c, n);
      exponentials += exp(lanes_or_lowest(logits, n) - peak);
      distances += first_lanes(part * (peak - logits), n);
      if (!kHard) masses += first_lanes(part, n);
    });
    total.add(exponentials), distance.add(distances);
    if (!kHard) mass.add(masses);
  }
  const C sum = static_cast<C>(total.total()), logarithm = log_of(sum);
  const C spread = kHard ? q.mass : static_cast<C>(mass.total());
  C loss = static_cast<C>(spread * static_cast<double>(logarithm) + distance.total());
  static_cast<C*>(p.peak)[position] = peak[0];
  static_cast<C*>(p.sum)[position] = sum;
  if constexpr (kHard) {
    if (q.counts(position))
      loss += q.spike(position) * (peak[0] - to_compute(x[q.hard.index[position]]) + logarithm);
    else
      loss = C(0);
  } else {
    static_cast<C*>(p.mass)[position] = spread;
  }
  static_cast<C*>(p.loss)[position] = loss;
}

template <class T, bool kHard>
void row_backward(const SoftCrossEntropyBackwardParams& p, int64_t position) {
  using C = Compute<T>;
  using V = Vec<C>;
  const Distribution<T, kHard> q(p.target, p.C);
  const T* x = static_cast<const T*>(p.x) + position * p.C;
  T* dx = static_cast<T*>(p.dx) + position * p.C;
  const V sum(static_cast<const C*>(p.sum)[position]), peak(static_cast<const C*>(p.peak)[position]);
  if (!q.counts(position)) {
    const V none = sum * V(C(0));  // NaN where the row has no softmax: torch's product with zero
    for_each_vec<V>(p.C, [&](int64_t i, int n) { store_n(dx + i, none, n); });
    return;
  }
  const V slope(IncomingSlopes<C>(p)(position));
  const V mass(kHard ? q.mass + q.spike(position) : static_cast<const C*>(p.mass)[position]);
  const V factor = slope * mass / sum;
  const auto gradient = [&](V logits, V part) { return exp(logits - peak) * factor - slope * part; };
  for_each_vec<V>(p.C, [&](int64_t c, int n) {
    const V part = q.spread(q.weights(c, n), position * p.C + c, n);
    store_n(dx + c, gradient(load_n(x + c, n), part), n);
  });
  if constexpr (kHard) {
    const int64_t t = q.hard.index[position];
    const V part = V(q.spike(position)) + V(q.weight(t) * q.share);
    dx[t] = from_compute<T>(gradient(V(to_compute(x[t])), part)[0]);
  }
}

// One register of columns, n lanes of it, from number `offset` of the input on; consecutive classes lie
// `inner` apart.
template <class T, bool kHard>
void strip(const SoftCrossEntropyParams& p, int64_t position, int64_t offset, int n) {
  using C = Compute<T>;
  using V = Vec<C>;
  const Distribution<T, kHard> q(p.target, p.C);
  const T* x = static_cast<const T*>(p.x) + offset;
  V peak = minus_infinity<V>(), sum(C(0)), distance(C(0)), mass(kHard ? q.mass : C(0));
  for (int64_t c = 0; c < p.C; ++c) peak = max(peak, load_n(x + c * p.inner, n));
  for (int64_t c = 0; c < p.C; ++c) {
    const V d = peak - load_n(x + c * p.inner, n), part = q.spread(V(q.weight(c)), offset + c * p.inner, n);
    sum += exp(-d);
    distance = fma(part, d, distance);
    if (!kHard) mass += part;
  }
  const V logarithm = log(sum);
  V loss = fma(mass, logarithm, distance);
  if constexpr (kHard) {
    for (int j = 0; j < n; ++j) {
      const int64_t i = position + j;
      loss.v[j] =
          q.counts(i)
              ? loss[j] + q.spike(i) * (peak[j] - to_compute(x[q.hard.index[i] * p.inner + j]) + logarithm[j])
              : C(0);
    }
  } else {
    store_n(static_cast<C*>(p.mass) + position, mass, n);
  }
  store_n(static_cast<C*>(p.peak) + position, peak, n);
  store_n(static_cast<C*>(p.sum) + position, sum, n);
  store_n(static_cast<C*>(p.loss) + position, loss, n);
}

template <class T, bool kHard>
void strip_backward(const SoftCrossEntropyBackwardParams& p, int64_t position, int64_t offset, int n) {
  using C = Compute<T>;
  using V = Vec<C>;
  const Distribution<T, kHard> q(p.target, p.C);
  const IncomingSlopes<C> incoming(p);
  const T* x = static_cast<const T*>(p.x) + offset;
  T* dx = static_cast<T*>(p.dx) + offset;
  const V peak = load_n(static_cast<const C*>(p.peak) + position, n);
  const V sum = load_n(static_cast<const C*>(p.sum) + position, n), zero(C(0));
  V slope(C(0)), spike(C(0)), which(C(-1)), mass(q.mass);
  for (int j = 0; j < n; ++j) {
    if (!q.counts(position + j)) continue;
    slope.v[j] = incoming(position + j);
    if constexpr (kHard) {
      spike.v[j] = q.spike(position + j);
      which.v[j] = static_cast<C>(q.hard.index[position + j]);
    }
  }
  if constexpr (kHard)
    mass += spike;
  else
    mass = load_n(static_cast<const C*>(p.mass) + position, n);
  const V factor = slope * mass / sum, none = sum * zero;  // as in row_backward
  const auto ignored = kHard ? which < zero : zero < zero;
  for (int64_t c = 0; c < p.C; ++c) {
    V part = q.spread(V(q.weight(c)), offset + c * p.inner, n);
    if (kHard) part += select(which == V(static_cast<C>(c)), spike, zero);
    const V g = exp(load_n(x + c * p.inner, n) - peak) * factor - slope * part;
    store_n(dx + c * p.inner, select(ignored, none, g), n);
  }
}

void rows(const SoftCrossEntropyParams& p, int64_t begin, int64_t end) {
  choose(p, [&]<class T, bool kHard>() {
    for (int64_t i = begin; i < end; ++i) row<T, kHard>(p, i);
  });
}

void rows_backward(const SoftCrossEntropyBackwardParams& p, int64_t begin, int64_t end) {
  choose(p, [&]<class T, bool kHard>() {
    for (int64_t i = begin; i < end; ++i) row_backward<T, kHard>(p, i);
  });
}

void columns(const SoftCrossEntropyParams& p, int64_t n, int64_t begin, int64_t end) {
  choose(p, [&]<class T, bool kHard>() {
    for_each_vec<Vec<Compute<T>>>(end - begin, [&](int64_t i, int lanes) {
      const int64_t j = begin + i;
      strip<T, kHard>(p, n * p.inner + j, n * p.C * p.inner + j, lanes);
    });
  });
}

void columns_backward(const SoftCrossEntropyBackwardParams& p, int64_t n, int64_t begin, int64_t end) {
  choose(p, [&]<class T, bool kHard>() {
    for_each_vec<Vec<Compute<T>>>(end - begin, [&](int64_t i, int lanes) {
      const int64_t j = begin + i;
      strip_backward<T, kHard>(p, n * p.inner + j, n * p.C * p.inner + j, lanes);
    });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const LossSoftKernels loss_soft;
const LossSoftKernels loss_soft = {rows, rows_backward, columns, columns_backward};
}  // namespace fastnn::cpu::FASTNN_ISA
