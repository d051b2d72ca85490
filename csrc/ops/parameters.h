// What the norms' ops share: tensors without a trip through the dispatcher, and which parameters fit.
#pragma once
#include <ATen/EmptyTensor.h>

#include "ops/front.h"
#include "ops/vectors.h"

namespace fastnn::ops {

inline Tensor empty(at::IntArrayRef sizes, at::ScalarType type,
                    at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return at::detail::empty_cpu(sizes, type, /*pin_memory=*/false, format);
}

// Parameters must agree in dtype with each other and with the input; beside a half type they may be float.
inline const char* why_not_parameters(const Op& op, const Tensor& input,
                                      c10::ArrayRef<const Tensor*> parameters) {
  const auto first = std::find_if(parameters.begin(), parameters.end(), [](auto t) { return t->defined(); });
  if (first == parameters.end()) return nullptr;
  if (const char* reason = why_not(op, parameters)) return reason;
  if ((*first)->device() != input.device()) return "mixed devices";
  const bool half = input.scalar_type() == at::kHalf || input.scalar_type() == at::kBFloat16;
  const auto type = (*first)->scalar_type();
  return type == input.scalar_type() || (half && type == at::kFloat) ? nullptr : "mixed dtypes";
}

}  // namespace fastnn::ops
