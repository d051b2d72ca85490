// What embeddings and bags of them ask of their table and their indices.
#pragma once
#include "ops/front.h"
#include "ops/vectors.h"

namespace fastnn::ops {

inline void check_table(const Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_floating_point() && weight.numel() > 0,
              "fastnn: an embedding of ", weight.sizes(), " and ", weight.scalar_type());
}

// Indices as the kernels read them.
inline Tensor entries_of(const Tensor& indices) {
  return indices.to(at::kLong).contiguous();
}

inline const char* why_not_table(const Op& op, const Tensor& weight, const Tensor& indices) {
  if (const char* reason = why_not(op, weight)) return reason;
  if (!is_plain(indices)) return "indices that are not plain and dense";
  if (indices.scalar_type() != at::kLong && indices.scalar_type() != at::kInt)
    return "indices that are not of 32 or 64 bits";
  if (indices.device() != weight.device()) return "mixed devices";
  if (weight.dim() != 2 || weight.numel() == 0) return "a table that is empty or not of two dimensions";
  return weight.is_contiguous() ? nullptr : "a table with gaps";
}

}  // namespace fastnn::ops
