// What other families use of the element-wise activations.
#pragma once
#include "ops/torch.h"

namespace fastnn::ops {

// x = f(x), recorded by autograd. The caller has found that x may be overwritten. kind: position in
// FASTNN_ACTIVATIONS.
at::Tensor activation_in_place(const at::Tensor& x, int64_t kind, double a, double b);

}  // namespace fastnn::ops
