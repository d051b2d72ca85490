// What the ops of layer and group norm share.
#pragma once
#include "ops/parameters.h"

namespace fastnn::ops {

// The statistics leave an autograd function through here: as outputs they would be wrapped at some cost, to
// no use.
struct Statistics {
  Tensor mean, rstd;
};

// What a Function keeps beside its tensors, in two entries: each costs a hash of its name. `number`: the
// normalised dimensions, or groups.
inline void save_arguments(torch::autograd::AutogradContext* ctx, int64_t number, bool rms, bool no_bias,
                           double eps) {
  ctx->saved_data["arguments"] = number * 4 + rms * 2 + no_bias;
  ctx->saved_data["eps"] = eps;
}
struct SavedArguments {
  int64_t number;
  bool rms, no_bias;
  double eps;
  explicit SavedArguments(torch::autograd::AutogradContext* ctx) : eps(ctx->saved_data["eps"].toDouble()) {
    const int64_t packed = ctx->saved_data["arguments"].toInt();
    number = packed / 4, rms = (packed & 2) != 0, no_bias = (packed & 1) != 0;
  }
  // Which of the gradients of x, weight and bias, the first inputs of the Function. needs_input_grad counts
  // the tensors that are there, not the arguments.
  std::array<bool, 3> wanted_gradients(torch::autograd::AutogradContext* ctx, const Tensor& weight) const {
    const bool has_weight = weight.defined();
    return {ctx->needs_input_grad(0), has_weight && ctx->needs_input_grad(1),
            !no_bias && ctx->needs_input_grad(has_weight ? 2 : 1)};
  }
};

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
