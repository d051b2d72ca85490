// Element-wise activations: the formulas of activation_table.h over elementwise.cuh.
// Compute type: float, double for double. One kernel per activation, direction and element type.
#include "cuda/activation.h"
#include "cuda/elementwise.cuh"
#include "fastnn/activation_table.h"

namespace fastnn::cuda {
namespace {

template <class Activation, class C>
struct Forward {
  C a, b;
  __device__ __forceinline__ C operator()(C x) const { return Activation::forward(x, a, b); }
};

template <class Activation, class T>
struct Backward {
  using C = Compute<T>;
  C a, b;
  __device__ __forceinline__ C operator()(C dy, C saved) const {
    return activations::derivative<Activation, T>(dy, saved, a, b);
  }
};

// dy is one number, read from the device once by each thread: the gradient of a sum.
template <class Activation, class T>
struct BackwardOfSum {
  const T* dy;
  Compute<T> a, b;

  struct Prepared {
    Compute<T> dy, a, b;
    __device__ __forceinline__ Compute<T> operator()(Compute<T> saved) const {
      return activations::derivative<Activation, T>(dy, saved, a, b);
    }
  };
  __device__ __forceinline__ Prepared prepare() const { return {load(*dy), a, b}; }
};

// Calls f(Activation{}) with the struct of this kind.
template <class F>
void visit_activation(int kind, const F& f) {
  switch (kind) {
#define FASTNN_CASE(name, Struct) \
  case ActivationKind::k##Struct: return f(activations::Struct{});
    FASTNN_ACTIVATIONS(FASTNN_CASE)
#undef FASTNN_CASE
    default: throw std::invalid_argument("fastnn: unknown activation");
  }
}

}  // namespace

void activation_forward(const ActivationParams& p, cudaStream_t stream) {
  visit_activation(p.kind, [&](auto activation) {
    visit(p.dtype, [&](auto element) {
      using T = decltype(element);
      using C = Compute<T>;
      const Forward<decltype(activation), C> f{static_cast<C>(p.a), static_cast<C>(p.b)};
      elementwise(p.n, static_cast<T*>(p.y), f, stream, static_cast<const T*>(p.x));
    });
  });
}

void activation_backward(const ActivationBackwardParams& p, cudaStream_t stream) {
  visit_activation(p.kind, [&](auto activation) {
    visit(p.dtype, [&](auto element) {
      using T = decltype(element);
      using C = Compute<T>;
      using Activation = decltype(activation);
      const T *dy = static_cast<const T*>(p.dy), *saved = static_cast<const T*>(p.saved);
      T* dx = static_cast<T*>(p.dx);
      const C a = static_cast<C>(p.a), b = static_cast<C>(p.b);
      if (p.dy_broadcast) {
        elementwise(p.n, dx, BackwardOfSum<Activation, T>{dy, a, b}, stream, saved);
      } else {
        elementwise(p.n, dx, Backward<Activation, T>{a, b}, stream, dy, saved);
      }
    });
  });
}

}  // namespace fastnn::cuda
