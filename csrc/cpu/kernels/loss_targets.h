// What the losses of classes share: the targets of positions, what their gradients are multiplied with, the
// largest logit of a row. Numbers are of the compute type.
#pragma once
#include "cpu/simd/lanes.h"
#include "fastnn/loss.h"

namespace {

template <class C>
struct Targets {
  const int64_t* index;
  const C* class_weight;
  int64_t ignored;
  FASTNN_INLINE explicit Targets(const fastnn::ClassTargets& t)
      : index(t.index), class_weight(static_cast<const C*>(t.class_weight)), ignored(t.ignored) {}
  FASTNN_INLINE bool counts(int64_t position) const { return index[position] != ignored; }
  FASTNN_INLINE C weight(int64_t position) const {
    return class_weight ? class_weight[index[position]] : C(1);
  }
};

// dy of a position, times the scale of the reduction.
template <class C>
struct IncomingSlopes {
  const C* dy;
  bool number;
  C scale;
  template <class Params>
  FASTNN_INLINE explicit IncomingSlopes(const Params& p)
      : dy(static_cast<const C*>(p.dy)), number(p.dy_is_number), scale(static_cast<C>(p.scale)) {}
  FASTNN_INLINE C operator()(int64_t position) const { return dy[number ? 0 : position] * scale; }
};

// The same times the weight of the position, 0 where it is ignored.
template <class C>
struct Slopes {
  Targets<C> target;
  IncomingSlopes<C> incoming;
  template <class Params>
  FASTNN_INLINE explicit Slopes(const Params& p) : target(p.target), incoming(p) {}
  FASTNN_INLINE C operator()(int64_t position) const {
    return target.counts(position) ? incoming(position) * target.weight(position) : C(0);
  }
};

// The largest of n logits, in all lanes.
template <class T>
FASTNN_INLINE Vec<fastnn::Compute<T>> peak_of_row(const T* x, int64_t n) {
  using V = Vec<fastnn::Compute<T>>;
  V best[4] = {minus_infinity<V>(), minus_infinity<V>(), minus_infinity<V>(), minus_infinity<V>()};
  int64_t i = 0;
  for (; i + 4 * V::N <= n; i += 4 * V::N)
    for (int k = 0; k < 4; ++k) best[k] = max(best[k], load_n(x + i + k * V::N, V::N));
  for_each_vec<V>(n - i, [&](int64_t j, int lanes) {
    best[0] = max(best[0], lanes_or_lowest(load_n(x + i + j, lanes), lanes));
  });
  return max_of_lanes(max(max(best[0], best[1]), max(best[2], best[3])));
}

}  // namespace
