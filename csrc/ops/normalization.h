// What the ops of layer and group norm share. No Python here: libfastnn_cuda.so is built from this header
// too.
#pragma once
#include "ops/vectors.h"

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

// x as [rows, length]: the last `dims` dimensions are normalised.
struct Rows {
  int64_t rows, length;
};
inline Rows rows_of(const Tensor& x, int64_t dims) {
  TORCH_CHECK(dims >= 1 && dims <= x.dim(), "fastnn: ", dims, " normalised dimensions of ", x.dim());
  const auto sizes = x.sizes();
  return {c10::multiply_integers(sizes.slice(0, x.dim() - dims)),
          c10::multiply_integers(sizes.slice(x.dim() - dims))};
}

// Contiguous whatever the layout of x, as torch's layer norm; torch's RMS norm keeps channels_last.
inline at::MemoryFormat output_format(const Tensor& x, bool rms) {
  return rms ? x.suggest_memory_format() : at::MemoryFormat::Contiguous;
}

}  // namespace fastnn::ops
