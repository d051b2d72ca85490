// Dropout: hands out ranges of indices that begin at whole batches of the generator.
#include "fastnn/dropout.h"

#include <algorithm>
#include <type_traits>

#include "cpu/by_type.h"
#include "cpu/draws.h"
#include "cpu/kernels/dropout.h"
#include "cpu/parallel.h"

namespace fastnn::cpu {
namespace {

template <class T>
void run(const DropoutParams& p) {
  using A = Compute<T>;
  const DropoutOps<T>& ops = of_type<T>(dropout_kernels());
  const PhiloxStream stream = {p.seed, p.offset};
  const uint32_t threshold = dropout_threshold(p.p);
  const A scale = static_cast<A>(p.scale), kept = static_cast<A>(p.kept), dropped = static_cast<A>(p.dropped);
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);

  parallel_draws(p.decisions, p.length, [&](int64_t first, int64_t last) {
    const int64_t at = first * p.length;
    if (p.length == 1) {
      ops.elements(x + at, y + at, first, last - first, stream, threshold, scale, kept, dropped);
    } else {
      ops.features(x + at, y + at, first, last - first, p.length, stream, threshold, scale, kept, dropped);
    }
  });
}

}  // namespace

void dropout(const DropoutParams& p) {
  if (p.decisions == 0 || p.length == 0) return;
  visit(p.dtype, [&](auto t) { run<decltype(t)>(p); });
}

void relu_dropout(const ReluDropoutParams& p) {
  visit(p.dtype, [&](auto t) {
    using T = decltype(t);
    const T* x = static_cast<const T*>(p.x);
    T* y = static_cast<T*>(p.y);
    parallel_draws(p.count, 1, [&](int64_t first, int64_t last) {
      of_type<T>(dropout_kernels())
          .relu(x + first, y + first, first, last - first, {p.seed, p.offset}, dropout_threshold(p.p),
                static_cast<Compute<T>>(1 / (1 - p.p)));
    });
  });
}

void relu_dropout_backward(const ReluDropoutBackwardParams& p) {
  visit(p.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(p.count, kGrain, [&](int64_t first, int64_t last) {
      of_type<T>(dropout_kernels())
          .relu_backward(static_cast<const T*>(p.dy) + first, static_cast<const T*>(p.y) + first,
                         static_cast<T*>(p.dx) + first, last - first, static_cast<Compute<T>>(p.scale));
    });
  });
}

}  // namespace fastnn::cpu
