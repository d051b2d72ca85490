// Element types of a tensor, as the kernels see them. No torch header is needed to name one.
#pragma once
#include <cstdint>

namespace fastnn {

enum class DType : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Storage-only 16-bit types: kernels load them as float, compute in float and round once on store.
struct BFloat16 {
  uint16_t bits;  // upper half of an IEEE binary32
};
struct Float16 {
  uint16_t bits;  // IEEE binary16
};

// The type in which a kernel computes on elements of type T.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeType<T>::type;

// Calls f(T{}) with the C++ type of dtype: the one dtype switch of the torch-free code.
template <class F>
decltype(auto) visit(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat64: return f(double{});
    case DType::kBFloat16: return f(BFloat16{});
    case DType::kFloat16: return f(Float16{});
    default: return f(float{});
  }
}

}  // namespace fastnn
