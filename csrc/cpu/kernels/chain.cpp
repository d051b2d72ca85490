// y = a + b, element by element.
#include "cpu/kernels/chain.h"

#include "cpu/simd/vec.h"

namespace {

using fastnn::Compute;

template <class T>
void add(const T* a, const T* b, T* y, int64_t n) {
  for_each_vec<Vec<Compute<T>>>(
      n, [&](int64_t i, int lanes) { store_n(y + i, load_n(a + i, lanes) + load_n(b + i, lanes), lanes); });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const ChainKernels chain;
const ChainKernels chain = {add<float>, add<double>, add<BFloat16>, add<Float16>};
}  // namespace fastnn::cpu::FASTNN_ISA
