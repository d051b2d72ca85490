// The element-wise activations in aten ops: what runs instead of a kernel, and what is differentiated
// when the backward itself needs a gradient.
#pragma once
#include "ops/torch.h"

namespace fastnn::ops {

struct ActivationAten {
  at::Tensor (*forward)(const at::Tensor& x, double a, double b);
  // dx from s, which is y or x (ActivationInfo::saves_y); made of differentiable ops.
  at::Tensor (*backward)(const at::Tensor& dy, const at::Tensor& s, bool s_is_y, double a, double b);
};

const ActivationAten& activation_aten(int kind);  // kind: position in FASTNN_ACTIVATIONS

}  // namespace fastnn::ops
