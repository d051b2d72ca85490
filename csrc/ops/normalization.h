// What the ops of layer and group norm share.
#pragma once
#include "ops/parameters.h"

namespace fastnn::ops {

// The statistics leave an autograd function through here: as outputs they would be wrapped at some cost, to
// no use.
struct Statistics {
  Tensor mean, rstd;
};

// Which of three gradients are wanted, of x, weight and bias: the first inputs of a Function that has saved
// `weight` and, where there is no bias, "no bias". needs_input_grad counts the tensors that are there, not
// the arguments.
inline std::array<bool, 3> wanted_gradients(torch::autograd::AutogradContext* ctx, const Tensor& weight) {
  const bool has_weight = weight.defined(), has_bias = ctx->saved_data.count("no bias") == 0;
  return {ctx->needs_input_grad(0), has_weight && ctx->needs_input_grad(1),
          has_bias && ctx->needs_input_grad(has_weight ? 2 : 1)};
}

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
