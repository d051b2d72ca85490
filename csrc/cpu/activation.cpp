// Element-wise activations: contiguous ranges, one per thread, sized by the cost of the function.
#include "cpu/kernels/activation.h"

#include "cpu/parallel.h"
#include "fastnn/activation_table.h"

namespace fastnn::cpu {

void activation_forward(const ActivationParams& p) {
  const auto& kernels = activation_kernels();
  parallel_for(p.n, kGrain / kActivationInfo[p.kind].cost,
               [&](int64_t begin, int64_t end) { kernels.forward(p, begin, end); });
}

void activation_backward(const ActivationBackwardParams& p) {
  const auto& kernels = activation_kernels();
  const auto& info = kActivationInfo[p.kind];
  const int cost =
      info.saves_y(p.dtype) ? 1 : info.cost;  // from y the derivative is a product or a comparison
  parallel_for(p.n, kGrain / cost, [&](int64_t begin, int64_t end) { kernels.backward(p, begin, end); });
}

}  // namespace fastnn::cpu
