// Negative log-likelihood: loss = -w_t x_t, dx_t = -w_t dy and 0 elsewhere. What is read and written of a
// position is one number, so nothing here runs in registers but the zeros.
#include "cpu/kernels/loss_nll.h"

#include "cpu/kernels/loss_targets.h"

namespace {

using namespace fastnn;

void losses(const NllParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    const Targets<C> target(p.target);
    const T* x = static_cast<const T*>(p.x);
    C* loss = static_cast<C*>(p.loss);
    const T* entry = x + begin / p.inner * p.C * p.inner;
    for (int64_t i = begin, j = begin % p.inner; i < end; ++i) {
      loss[i] =
          target.counts(i) ? -target.weight(i) * to_compute(entry[target.index[i] * p.inner + j]) : C(0);
      if (++j == p.inner) j = 0, entry += p.C * p.inner;
    }
  });
}

void gradient(const NllBackwardParams& p, int64_t n, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const Slopes<Compute<T>> slopes(p);
    T* dx = static_cast<T*>(p.dx) + n * p.C * p.inner;
    for (int64_t c = 0; c < p.C; c += p.inner == 1 ? p.C : 1) {
      const int64_t numbers = p.inner == 1 ? p.C : end - begin;
      __builtin_memset(dx + c * p.inner + begin, 0, static_cast<size_t>(numbers) * sizeof(T));
    }
    for (int64_t j = begin; j < end; ++j) {
      const int64_t i = n * p.inner + j;
      if (slopes.target.counts(i)) dx[slopes.target.index[i] * p.inner + j] = from_compute<T>(-slopes(i));
    }
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const LossNllKernels loss_nll;
const LossNllKernels loss_nll = {losses, gradient};
}  // namespace fastnn::cpu::FASTNN_ISA
