// RReLU in training: y = sign <= 0 ? r x : x, one random word per element, forward and backward alike.
//
// r = lower + u (upper - lower). u is the upper bits of the word over their range, as many as a signed
// integer converts to the type without rounding: 24 to float, 31 to double. So u < 1 and no r exceeds upper.
// Product and sum are rounded apart: every instruction set gets the same r.
#include "cpu/kernels/activation_random.h"

#include "cpu/kernels/philox.h"

namespace {

using fastnn::Compute;
using fastnn::RreluParams;

template <class T>
void rrelu(const RreluParams& p, int64_t first, int64_t last) {
  using C = Compute<T>;
  using V = Vec<C>;
  constexpr int kBits = sizeof(C) == 8 ? 31 : 24;
  const V lower(static_cast<C>(p.lower));
  const V step((static_cast<C>(p.upper) - static_cast<C>(p.lower)) / static_cast<C>(1u << kBits));
  const T* x = static_cast<const T*>(p.x) + first;
  const T* sign = static_cast<const T*>(p.sign) + first;
  T* y = static_cast<T*>(p.y) + first;
  const PhiloxStream stream = {p.seed, p.offset};
  const auto each = [&](int64_t i, U32 words, int count) __attribute__((always_inline)) {
    const I32 drawn = (I32)(words >> (32 - kBits));
    for_each_piece<V>(drawn, count, [&](int at, auto piece, int lanes) __attribute__((always_inline)) {
      const V r = lower + V(__builtin_convertvector(piece, typename V::Raw)) * step;
      const V a = load_n(x + i + at, lanes), s = load_n(sign + i + at, lanes);
      store_n(y + i + at, select(s <= V(C(0)), a * r, a), lanes);
    });
  };
  for_each_draw(first, last - first, stream, each);
}

constexpr void (*kRrelu[])(const RreluParams&, int64_t, int64_t) = {rrelu<float>, rrelu<double>,
                                                                    rrelu<BFloat16>, rrelu<Float16>};

void run_rrelu(const RreluParams& p, int64_t first, int64_t last) {
  kRrelu[static_cast<int>(p.dtype)](p, first, last);
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const ActivationRandomKernels activation_random;
const ActivationRandomKernels activation_random = {run_rrelu};
}  // namespace fastnn::cpu::FASTNN_ISA
