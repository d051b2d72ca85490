// The inner loops of dropout.
#pragma once
#include <cstdint>

#include "cpu/capability.h"
#include "fastnn/dtype.h"
#include "fastnn/philox.h"

namespace fastnn::cpu {

template <class T>
struct DropoutOps {
  using A = Compute<T>;
  // y[i] of the indices [first, first + n), of x and y that begin at index `first`.
  void (*elements)(const T* x, T* y, int64_t first, int64_t n, PhiloxStream, uint32_t threshold, A scale,
                   A kept, A dropped);
  // The same with one decision for `length` elements.
  void (*features)(const T* x, T* y, int64_t first, int64_t n, int64_t length, PhiloxStream,
                   uint32_t threshold, A scale, A kept, A dropped);
  // y[i] = max(0, x[i]) * scale, or * 0 where it is dropped; indices as those of elements().
  void (*relu)(const T* x, T* y, int64_t first, int64_t n, PhiloxStream, uint32_t threshold, A scale);
  // dx = y > 0 ? dy * scale : 0, or NaN where y is.
  void (*relu_backward)(const T* dy, const T* y, T* dx, int64_t n, A scale);
};

struct DropoutKernels {
  DropoutOps<float> float32;
  DropoutOps<double> float64;
  DropoutOps<BFloat16> bfloat16;
  DropoutOps<Float16> float16;
  // The generator itself, for tests: n words from this counter on.
  void (*random)(uint32_t* words, uint64_t counter, int64_t n, PhiloxStream);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(DropoutKernels, dropout)
