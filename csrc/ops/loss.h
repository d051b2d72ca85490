// What the CPU and CUDA ops of the losses share. No Python here: libfastnn_cuda.so is built from this header
// too.
#pragma once
#include "fastnn/loss.h"
#include "fastnn/loss_pointwise.h"
#include "ops/vectors.h"

namespace fastnn::ops {

// Logits [N, C, inner]: the classes are dimension 1, or the only one.
inline DimensionView class_view(const Tensor& x) {
  return dimension_view(x, x.dim() == 1 ? 0 : 1);
}

// The input without gaps, and the target with its strides.
struct Operands {
  Tensor x, target;
  Operands(const Tensor& input, const Tensor& t)
      : x(input.is_non_overlapping_and_dense() ? input : input.contiguous()) {
    check_like(t, input, "target");
    target = with_layout_of(t, x);
  }
};

// What dy is multiplied with.
inline double scale_of(int64_t reduction, int64_t count) {
  return reduction == at::Reduction::Mean ? 1 / static_cast<double>(count) : 1;
}

}  // namespace fastnn::ops
