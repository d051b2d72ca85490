// Memory for the time of one launch, from torch's allocator: safe under capture, reused in stream order.
#pragma once
#include "ops/tensors.h"

namespace fastnn::ops {

inline Tensor workspace_of(int64_t bytes, const Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

}  // namespace fastnn::ops
