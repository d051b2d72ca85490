// The entry for element type T of a kernel table that has one for each.
#pragma once
#include <type_traits>

#include "fastnn/dtype.h"

namespace fastnn::cpu {

template <class T, class Kernels>
const auto& of_type(const Kernels& kernels) {
  if constexpr (std::is_same_v<T, double>) {
    return kernels.float64;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return kernels.bfloat16;
  } else if constexpr (std::is_same_v<T, Float16>) {
    return kernels.float16;
  } else {
    return kernels.float32;
  }
}

}  // namespace fastnn::cpu
