// What every op needs to know of a tensor. No Python here: libfastnn_cuda.so is built from this header too.
#pragma once
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <optional>

#include "fastnn/dtype.h"

namespace fastnn::ops {

using at::Tensor;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble: return DType::kFloat64;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kHalf: return DType::kFloat16;
    default: return DType::kFloat32;
  }
}

inline bool needs_grad(const Tensor& t) {
  return t.defined() && t.requires_grad();
}
inline bool needs_grad(const std::optional<Tensor>& t) {
  return t && needs_grad(*t);
}

// Takes part in forward-mode differentiation. The first question is a look at a pointer, _fw_grad() two
// calls.
inline bool has_tangent(const Tensor& t) {
  if (!t.defined()) return false;
  const auto* meta =
      static_cast<const torch::autograd::AutogradMeta*>(t.unsafeGetTensorImpl()->autograd_meta());
  return meta != nullptr && meta->fw_grad_ != nullptr && t._fw_grad(0).defined();
}
inline bool has_tangent(const std::optional<Tensor>& t) {
  return t && has_tangent(*t);
}

// The private ops get their arguments from the front ops, which leave what does not fit to torch. Called by
// hand they check for themselves: a kernel never reads or writes outside a tensor.
inline void check_sizes(const Tensor& t, at::IntArrayRef sizes, const Tensor& like, const char* name) {
  TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == like.scalar_type() && t.device() == like.device(),
              "fastnn: ", name, " must have sizes ", sizes, " and dtype ", like.scalar_type(), ", not ",
              t.sizes(), " and ", t.scalar_type());
}
inline void check_like(const Tensor& t, const Tensor& like, const char* name) {
  check_sizes(t, like.sizes(), like, name);
}

// `t` with exactly the strides of `like` (same shape): element i of one is element i of the other in memory.
inline Tensor with_layout_of(const Tensor& t, const Tensor& like) {
  if (t.strides() == like.strides() && t.scalar_type() == like.scalar_type()) return t;
  return at::empty_strided(like.sizes(), like.strides(), like.options()).copy_(t);
}

// A contiguous tensor as [outer, length, inner] around one dimension; a 0-d tensor has length 1.
struct DimensionView {
  int64_t outer = 1, length = 1, inner = 1;
};
inline DimensionView dimension_view(const Tensor& t, int64_t dim) {
  if (t.dim() == 0) return {};
  return {c10::multiply_integers(t.sizes().slice(0, dim)), t.size(dim),
          c10::multiply_integers(t.sizes().slice(dim + 1))};
}

// at::empty_like() of a CPU tensor without the dispatcher, half a microsecond: every number will be written.
inline Tensor fresh_like(const Tensor& t) {
  if (!t.is_non_overlapping_and_dense()) return at::empty_like(t);
  return at::detail::empty_strided_cpu(t.sizes(), t.strides(), t.scalar_type());
}

// One number seen as a whole tensor: the gradient that sum().backward() sends.
inline bool is_broadcast_number(const Tensor& t) {
  return std::all_of(t.strides().begin(), t.strides().end(), [](int64_t stride) { return stride == 0; });
}

}  // namespace fastnn::ops
