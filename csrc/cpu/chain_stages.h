// One stage of a chain (csrc/cpu/chain.cpp) on a few planes that lie together in memory, by the kernels of
// its own family.
#pragma once
#include <algorithm>
#include <cstring>

#include "cpu/by_type.h"
#include "cpu/kernels/activation.h"
#include "cpu/kernels/dropout.h"
#include "fastnn/activation_table.h"
#include "fastnn/chain.h"
#include "fastnn/dropout.h"

namespace fastnn::cpu {

template <class T>
class ChainStage {
  using A = Compute<T>;

 public:
  ChainStage(const ChainStages& s, DType dtype) : s_(s), dtype_(dtype) {}

  bool activates() const { return s_.activation >= 0; }
  bool pools() const { return s_.pool != ChainStages::kNone; }
  bool drops() const { return s_.p > 0; }

  void activate(const T* x, T* y, int64_t n) const {
    activation_kernels().forward(
        {.kind = s_.activation, .dtype = dtype_, .n = n, .x = x, .y = y, .a = s_.a, .b = s_.b}, 0, n);
  }
  bool activation_saves_y() const { return kActivationInfo[s_.activation].saves_y(dtype_); }
  void activate_backward(const T* dy, const T* saved, T* dx, int64_t n) const {
    activation_kernels().backward({.kind = s_.activation,
                                   .dtype = dtype_,
                                   .n = n,
                                   .dy = dy,
                                   .saved = saved,
                                   .dx = dx,
                                   .a = s_.a,
                                   .b = s_.b},
                                  0, n);
  }

  // Of `planes` planes: x [planes, L] or, channels last, [L, planes]; `at` is where y starts in the whole
  // output.
  void pool(const T* x, T* y, void* codes, int64_t at, int64_t planes) const {
    const PoolShape shape = windows(planes);
    if (s_.pool == ChainStages::kMax) {
      max_pool_forward({.dtype = dtype_, .shape = shape, .x = x, .y = y, .codes = code(codes, at)});
    } else {
      avg_pool_forward({.dtype = dtype_,
                        .shape = shape,
                        .count_include_pad = s_.count_include_pad,
                        .divisor = s_.divisor,
                        .x = x,
                        .y = y});
    }
  }
  void pool_backward(const T* dy, const void* codes, T* dx, int64_t at, int64_t planes) const {
    const PoolShape shape = windows(planes);
    if (s_.pool == ChainStages::kMax) {
      void* const all_codes = const_cast<void*>(codes);
      max_pool_backward({.dtype = dtype_, .shape = shape, .dy = dy, .codes = code(all_codes, at), .dx = dx});
    } else {
      avg_pool_backward({.dtype = dtype_,
                         .shape = shape,
                         .count_include_pad = s_.count_include_pad,
                         .divisor = s_.divisor,
                         .dy = dy,
                         .dx = dx});
    }
  }

  // n elements from index `at` of the whole on; y may be x.
  void drop(const T* x, T* y, int64_t at, int64_t n) const {
    of_type<T>(dropout_kernels())
        .elements(x, y, at, n, {s_.seed, s_.offset}, dropout_threshold(s_.p), static_cast<A>(1 / (1 - s_.p)),
                  0, 0);
  }

 private:
  PoolShape windows(int64_t planes) const {
    PoolShape shape = s_.windows;
    shape.n = 1;
    shape.c = planes;
    return shape;
  }
  void* code(void* codes, int64_t at) const {
    return codes == nullptr ? nullptr
                            : static_cast<char*>(codes) + at * (pool_codes_are_bytes(s_.windows) ? 1 : 4);
  }

  const ChainStages& s_;
  const DType dtype_;
};

}  // namespace fastnn::cpu
