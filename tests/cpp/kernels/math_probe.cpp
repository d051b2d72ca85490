#include "kernels/math_probe.h"

#include "cpu/simd/math.h"

namespace {

template <class T>
void run(int function, int64_t n, const T* x, T* y) {
  int index = 0;
#define FASTNN_PROBE(name) \
  if (function == index++) \
    for_each_vec<Vec<T>>(n, [&](int64_t i, int lanes) { store_n(y + i, name(load_n(x + i, lanes)), lanes); });
  FASTNN_MATH_FUNCTIONS(FASTNN_PROBE)
#undef FASTNN_PROBE
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const MathProbeKernels math_probe;
const MathProbeKernels math_probe = {run<float>, run<double>};
}  // namespace fastnn::cpu::FASTNN_ISA
