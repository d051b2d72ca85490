// What the ops of layer and group norm share.
#pragma once
#include "ops/node.h"
#include "ops/parameters.h"

namespace fastnn::ops {

// For second derivatives: the normalised x and the gradient of x where g is that of the normalised x, made of
// differentiable ops. Statistics over `dims`; around 0 with rms.
struct Normalised {
  Tensor value, gradient;
  Normalised(const Tensor& x, const Tensor& g, at::IntArrayRef dims, double eps, bool rms) {
    const Tensor d = rms ? x : x - x.mean(dims, true);
    const Tensor rstd = (d.square().mean(dims, true) + eps).rsqrt();
    value = d * rstd;
    const Tensor along = value * (g * value).mean(dims, true);
    gradient = rstd * ((rms ? g : g - g.mean(dims, true)) - along);
  }
};

// The gradients that `mask` does not ask for are empty tensors; a parameter's has the dtype of `weight`.
inline at::ScalarType parameter_type(const Tensor& x, const OptionalTensor& weight) {
  return weight && weight->defined() ? weight->scalar_type() : compute_type(x);
}

}  // namespace fastnn::ops
