// What linear's CPU and CUDA registrations share.
#pragma once
#include <vector>

#include "fastnn/linear.h"
#include "ops/tensors.h"
#include "ops/vectors.h"

namespace fastnn::ops {

// All dimensions but the last as one; a view where strides allow.
inline Tensor as_matrix(const Tensor& t) {
  if (t.dim() == 2) return t;
  const int64_t last = t.size(-1);
  int64_t rows = 1;
  for (const int64_t size : t.sizes().slice(0, t.dim() - 1)) rows *= size;
  return t.reshape({rows, last});
}

inline LinearMatrix matrix(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1)};
}

// Like `t`, with another size of the last dimension. SymInt serves Meta, int64_t kernels.
template <class Int>
std::vector<Int> with_last(c10::ArrayRef<Int> sizes, Int last) {
  std::vector<Int> out(sizes.begin(), sizes.end());
  out.back() = last;
  return out;
}

// Stands for a gradient that nobody asked for; outputs of one op must not share memory.
inline Tensor none(const Tensor& like) {
  return at::empty({0}, like.options());
}

}  // namespace fastnn::ops
