// What the CPU's kernels read of the class indices, checked with torch's words; and the front ops' questions.
#pragma once
#include "ops/loss.h"

namespace fastnn::ops {

struct Classes {
  Tensor index, weight;
  ClassTargets view;

  Classes(const Tensor& x, const Tensor& target, const OptionalTensor& class_weight, int64_t ignored) {
    const DimensionView v = class_view(x);
    TORCH_CHECK(target.scalar_type() == at::kLong && target.numel() == v.outer * v.inner,
                "fastnn: class indices of ", target.sizes(), " and ", target.scalar_type());
    index = target.contiguous();
    weight = vector_of(class_weight, v.length, compute_type(x));
    view = {.index = index.const_data_ptr<int64_t>(), .class_weight = data(weight), .ignored = ignored};
    const int64_t* bad = cpu::first_bad_target(view, index.numel(), v.length);
    TORCH_CHECK_INDEX(bad == nullptr, "Target ", bad == nullptr ? 0 : *bad, " is out of bounds.");
  }
};

// dy as the kernels read it: one number, or one for each position.
inline Tensor slopes_of(const Tensor& dy, const Tensor& x, int64_t reduction) {
  const DimensionView v = class_view(x);
  TORCH_CHECK(dy.numel() == (reduction == at::Reduction::None ? v.outer * v.inner : 1), "fastnn: dy of ",
              dy.sizes(), " for a loss of ", x.sizes());
  return dy.to(compute_type(x)).contiguous();
}

// One number: the losses of the positions, of the compute type, added and divided.
inline Tensor reduced_loss(const Tensor& losses, const Tensor& x, double divisor) {
  const double sum = cpu::sum_of_losses(dtype_of(x), losses.const_data_ptr(), losses.numel());
  return at::empty({}, x.options()).fill_(sum / divisor);
}

inline Tensor positions_like(const Tensor& x) {
  const int64_t dim = x.dim() == 1 ? 0 : 1;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.erase(sizes.begin() + dim);
  return at::empty(sizes, x.options().dtype(compute_type(x)));
}

// Why losses of classes can't run on these arguments, beyond why_not().
inline const char* why_not_classes(const Tensor& input, const OptionalTensor& weight, int64_t reduction) {
  if (needs_grad(weight)) return "a gradient of the class weights";
  if (reduction < at::Reduction::None || reduction > at::Reduction::Sum) return "an unknown reduction";
  const int64_t dims = input.dim();
  if (dims == 0 || input.numel() == 0) return "an empty or 0-d input";
  const int64_t classes = input.size(dims == 1 ? 0 : 1);
  // Strips of columns compare classes as floats.
  if (dims > 2 && classes >= (int64_t{1} << 24)) return "too many classes";
  return weight && weight->defined() && (weight->dim() != 1 || weight->numel() != classes)
             ? "class weights of another length than the classes"
             : nullptr;
}

// The same for class indices.
inline const char* why_not_indices(const Tensor& input, const Tensor& target) {
  if (target.scalar_type() != at::kLong) return "targets are not class indices of 64 bits";
  if (target.device() != input.device()) return "targets on another device";
  std::vector<int64_t> expected = input.sizes().vec();
  expected.erase(expected.begin() + (input.dim() == 1 ? 0 : 1));
  return target.sizes() == expected ? nullptr : "targets of another shape than the input without its classes";
}

}  // namespace fastnn::ops
