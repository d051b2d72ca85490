// y[i] = max(0, x[i]) and its derivative, one pass, nothing kept in memory in between.
#include "cpu/kernels/activation.h"

#include "cpu/simd/vec.h"

namespace {

using namespace fastnn;

void forward(const ActivationParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using V = Vec<Compute<T>>;
    const T* x = static_cast<const T*>(p.x) + begin;
    T* y = static_cast<T*>(p.y) + begin;
    for_each_vec<V>(end - begin, [&](int64_t i, int n) { store_n(y + i, max(V(0), load_n(x + i, n)), n); });
  });
}

void backward(const ActivationBackwardParams& p, int64_t begin, int64_t end) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using V = Vec<Compute<T>>;
    const T *dy = static_cast<const T*>(p.dy) + begin, *y = static_cast<const T*>(p.saved) + begin;
    T* dx = static_cast<T*>(p.dx) + begin;
    for_each_vec<V>(end - begin, [&](int64_t i, int n) {
      store_n(dx + i, select(load_n(y + i, n) <= V(0), V(0), load_n(dy + i, n)), n);
    });
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const ActivationKernels activation;
const ActivationKernels activation = {forward, backward};
}  // namespace fastnn::cpu::FASTNN_ISA
