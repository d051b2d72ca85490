// Cross-entropy of label smoothing and of class probabilities, for the front op in loss.cpp.
#pragma once
#include "ops/vectors.h"

namespace fastnn::ops {

Tensor cross_entropy_soft(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                          int64_t reduction, int64_t ignored, double smoothing);

}  // namespace fastnn::ops
