// Per-channel or per-element parameters and running statistics as the kernels read them. No Python here:
// libfastnn_cuda.so is built from this header too.
#pragma once
#include <optional>

#include "ops/tensors.h"

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

}  // namespace fastnn::ops
