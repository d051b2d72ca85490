// Dropout: hands out ranges of indices that begin at whole batches of the generator.
#include "fastnn/dropout.h"

#include <algorithm>
#include <type_traits>

#include "cpu/by_type.h"
#include "cpu/draws.h"
#include "cpu/kernels/dropout.h"

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

}  // namespace fastnn::cpu
