// RReLU in training: hands out ranges of indices that begin at whole batches of the generator.
#include "cpu/kernels/activation_random.h"

#include "cpu/draws.h"

namespace fastnn::cpu {

void rrelu(const RreluParams& p) {
  const auto& kernels = activation_random_kernels();
  parallel_draws(p.n, 1, [&](int64_t first, int64_t last) { kernels.rrelu(p, first, last); });
}

}  // namespace fastnn::cpu
