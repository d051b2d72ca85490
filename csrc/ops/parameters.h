// What the norms' ops share: per-channel or per-element parameters and running statistics as the kernels read
// them, and tensors without a trip through the dispatcher.
#pragma once
#include <ATen/EmptyTensor.h>

#include <optional>

#include "ops/front.h"

namespace fastnn::ops {

using OptionalTensor = std::optional<Tensor>;

// Parameters and statistics have this dtype inside the kernels, whatever the module keeps.
inline at::ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline Tensor or_undefined(const OptionalTensor& t) {
  return t.value_or(Tensor());
}

// `count` numbers as the kernels read them; undefined stays undefined. The test saves two trips through the
// dispatcher.
inline Tensor vector_of(const OptionalTensor& t, int64_t count, at::ScalarType type) {
  if (!t || !t->defined()) return Tensor();
  TORCH_CHECK(t->numel() == count, "fastnn: a parameter of ", t->sizes(), " where ", count,
              " numbers belong");
  return t->scalar_type() == type && t->is_contiguous() ? *t : t->to(type).contiguous();
}
inline void* data(const Tensor& t) {
  return t.defined() ? t.data_ptr() : nullptr;
}

inline Tensor empty(at::IntArrayRef sizes, at::ScalarType type,
                    at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return at::detail::empty_cpu(sizes, type, /*pin_memory=*/false, format);
}

// A running statistic during its update: itself, or a copy in the compute type that is written back.
class Running {
 public:
  Running(const OptionalTensor& t, int64_t count, at::ScalarType type)
      : own_(or_undefined(t)), used_(vector_of(t, count, type)) {}
  void write_back() const {
    if (own_.defined() && !used_.is_same(own_)) own_.copy_(used_);
  }
  void* pointer() const { return data(used_); }

 private:
  Tensor own_, used_;
};

// In-place changes are announced to autograd by the version of the tensor.
inline void announce_change(const OptionalTensor& t) {
  if (t && t->defined() && !t->is_inference()) t->unsafeGetTensorImpl()->bump_version();
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
