// What the ops of layer and group norm share. No Python here: libfastnn_cuda.so is built from this header
// too.
#pragma once
#include "fastnn/normalization.h"
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

// x as [N, C, L] or, in another format, [N, L, C].
inline GroupNormShape shape_of(const Tensor& x, int64_t G, at::MemoryFormat format) {
  TORCH_CHECK(x.dim() >= 2 && G > 0 && x.size(1) % G == 0, "fastnn: ", G, " groups of channels in ",
              x.sizes());
  const int64_t N = x.size(0), C = x.size(1), L = N * C == 0 ? 0 : x.numel() / (N * C);
  return {.N = N, .C = C, .L = L, .G = G, .channels_last = L > 1 && format != at::MemoryFormat::Contiguous};
}

// Contiguous whatever the layout of x, as torch's layer norm; torch's RMS norm keeps channels_last.
inline at::MemoryFormat output_format(const Tensor& x, bool rms) {
  return rms ? x.suggest_memory_format() : at::MemoryFormat::Contiguous;
}

}  // namespace fastnn::ops
