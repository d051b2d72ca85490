// y = f(x) and dx = dy f'(s): one loop, instantiated for every row of activation_table.h and every dtype.
#include "cpu/kernels/activation.h"

#include "cpu/simd/math.h"
#include "fastnn/activation_table.h"

namespace {

using fastnn::ActivationBackwardParams;
using fastnn::ActivationParams;
using fastnn::Compute;
using Forward = void (*)(const ActivationParams&, int64_t, int64_t);
using Backward = void (*)(const ActivationBackwardParams&, int64_t, int64_t);

template <class F, class T>
void forward(const ActivationParams& p, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using V = Vec<C>;
  const T* x = static_cast<const T*>(p.x) + begin;
  T* y = static_cast<T*>(p.y) + begin;
  const V a(static_cast<C>(p.a)), b(static_cast<C>(p.b));
  for_each_vec<V>(end - begin,
                  [&](int64_t i, int n) { store_n(y + i, F::forward(load_n(x + i, n), a, b), n); });
}

template <class F, class T>
void backward(const ActivationBackwardParams& p, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using V = Vec<C>;
  const T* saved = static_cast<const T*>(p.saved) + begin;
  T* dx = static_cast<T*>(p.dx) + begin;
  const V a(static_cast<C>(p.a)), b(static_cast<C>(p.b));
  const auto run = [&](const auto& dy) {
    for_each_vec<V>(end - begin, [&](int64_t i, int n) {
      store_n(dx + i, fastnn::activations::derivative<F, T>(dy(i, n), load_n(saved + i, n), a, b), n);
    });
  };
  const T* dy = static_cast<const T*>(p.dy);
  if (p.dy_broadcast) {
    const V one(to_compute(*dy));
    run([&](int64_t, int) { return one; });
  } else {
    run([&](int64_t i, int n) { return load_n(dy + begin + i, n); });
  }
}

// [kind][dtype]
#define FASTNN_ROW(name, F)                                                         \
  {forward<fastnn::activations::F, float>, forward<fastnn::activations::F, double>, \
   forward<fastnn::activations::F, BFloat16>, forward<fastnn::activations::F, Float16>},
constexpr Forward kForward[][4] = {FASTNN_ACTIVATIONS(FASTNN_ROW)};
#undef FASTNN_ROW
#define FASTNN_ROW(name, F)                                                           \
  {backward<fastnn::activations::F, float>, backward<fastnn::activations::F, double>, \
   backward<fastnn::activations::F, BFloat16>, backward<fastnn::activations::F, Float16>},
constexpr Backward kBackward[][4] = {FASTNN_ACTIVATIONS(FASTNN_ROW)};
#undef FASTNN_ROW

void run_forward(const ActivationParams& p, int64_t begin, int64_t end) {
  kForward[p.kind][static_cast<int>(p.dtype)](p, begin, end);
}
void run_backward(const ActivationBackwardParams& p, int64_t begin, int64_t end) {
  kBackward[p.kind][static_cast<int>(p.dtype)](p, begin, end);
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const ActivationKernels activation;
const ActivationKernels activation = {run_forward, run_backward};
}  // namespace fastnn::cpu::FASTNN_ISA
