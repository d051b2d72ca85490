#include "fastnn/activation.h"

#include "cpu/kernels/activation.h"
#include "cpu/parallel.h"

namespace fastnn::cpu {

void activation_forward(const ActivationParams& p) {
  parallel_for(p.n, kGrain, [&](int64_t begin, int64_t end) { activation_kernels().forward(p, begin, end); });
}

void activation_backward(const ActivationBackwardParams& p) {
  parallel_for(p.n, kGrain, [&](int64_t begin, int64_t end) { activation_kernels().backward(p, begin, end); });
}

}  // namespace fastnn::cpu
