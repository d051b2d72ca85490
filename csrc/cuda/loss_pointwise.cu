// Losses of one element x and its target t each. Squared error: (x - t)^2, slope 2 (x - t). Binary
// cross-entropy of logits: (1 - t) x + log(1 + exp(-x)), slope sigmoid(x) - t. Bound by memory: one pass in
// each direction.
#include "cuda/elementwise.cuh"
#include "cuda/loss_sums.cuh"
#include "cuda/rows.cuh"
#include "fastnn/scalar_math.h"

namespace fastnn::cuda {
namespace {

template <PointwiseLoss kind, class C>
struct Value {
  __device__ __forceinline__ C operator()(C x, C t) const {
    if constexpr (kind == PointwiseLoss::kSquared) {
      return (x - t) * (x - t);
    } else {
      return fma(C(1) - t, x, softplus(-x));
    }
  }
};
template <PointwiseLoss kind, class C>
__device__ __forceinline__ C slope_of(C x, C t) {
  if constexpr (kind == PointwiseLoss::kSquared) {
    return (x - t) + (x - t);
  } else {
    return sigmoid(x) - t;
  }
}
template <PointwiseLoss kind, class C>
struct SlopeEach {
  __device__ __forceinline__ C operator()(C x, C t, C dy) const { return slope_of<kind>(x, t) * dy; }
};
// `number`, unless null, is read from the device once by each thread.
template <PointwiseLoss kind, class T>
struct SlopeOfSum {
  using C = Compute<T>;
  const T* number;
  C slope;

  struct Prepared {
    C slope;
    __device__ __forceinline__ C operator()(C x, C t) const { return slope_of<kind>(x, t) * slope; }
  };
  __device__ __forceinline__ Prepared prepare() const {
    return {number == nullptr ? slope : slope * load(*number)};
  }
};

// A thread sums packs: their few numbers in the compute type, the packs in double.
template <int N, PointwiseLoss kind, class T>
__global__ void __launch_bounds__(kLossThreads, kTwoBlocks)
    pointwise_parts(const T* x, const T* target, int64_t n, Two<double>* parts) {
  using C = Compute<T>;
  using R = Row<T, N, kWarp>;
  const int64_t packs = n / N, per_part = (packs + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * per_part;
  const int64_t end = begin + per_part < packs ? begin + per_part : packs;
  const Value<kind, C> value;
  Two<double> sums = {0, 0};
  C v[N], t[N];
#pragma unroll kInFlight < T>
  for (int64_t i = begin + threadIdx.x; i < end; i += kLossThreads) {
    R::read_piece(x + i * N, v);
    R::read_piece(target + i * N, t);
    C sum = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) sum += value(v[j], t[j]);
    sums.a += sum;
  }
  const int64_t rest = packs * N + threadIdx.x;
  if (blockIdx.x == 0 && rest < n) sums.a += value(load(x[rest]), load(target[rest]));
  sums = group_reduce<kLossThreads>(sums, SumTwo());
  if (threadIdx.x == 0) parts[blockIdx.x] = sums;
}

// f(Int<kind>, T{}) for the loss and the element type.
template <class F>
void visit_pointwise(PointwiseLoss kind, DType dtype, const F& f) {
  visit(dtype, [&](auto element) {
    if (kind == PointwiseLoss::kSquared) {
      f(Int<static_cast<int>(PointwiseLoss::kSquared)>{}, element);
    } else {
      f(Int<static_cast<int>(PointwiseLoss::kBinaryLogits)>{}, element);
    }
  });
}

}  // namespace

void pointwise_loss_forward(const PointwiseLossParams& p, double divisor, void* sum, double* workspace,
                            Stream stream) {
  visit_pointwise(p.kind, p.dtype, [&](auto which, auto element) {
    using T = decltype(element);
    constexpr auto kind = static_cast<PointwiseLoss>(decltype(which)::kValue);
    const T *x = static_cast<const T*>(p.x), *target = static_cast<const T*>(p.target);
    if (p.y != nullptr) {
      elementwise(p.count, static_cast<T*>(p.y), Value<kind, Compute<T>>{}, stream, x, target);
      return;
    }
    const int count = loss_parts(p.count);
    Two<double>* parts = reinterpret_cast<Two<double>*>(workspace);
    const auto start = [&](auto kernel) {
      launch(kernel, dim3(static_cast<unsigned>(count)), dim3(kLossThreads), 0, stream, x, target, p.count,
             parts);
    };
    if (count > 0) {
      is_aligned(x) && is_aligned(target) ? start(pointwise_parts<Pack<T>::N, kind, T>)
                                          : start(pointwise_parts<1, kind, T>);
    }
    launch(finish_sum<T>, dim3(1), dim3(kLossThreads), 0, stream, static_cast<const Two<double>*>(parts),
           count, divisor, static_cast<T*>(sum), static_cast<double*>(nullptr));
  });
}

void pointwise_loss_backward(const PointwiseLossBackwardParams& p, Stream stream) {
  visit_pointwise(p.kind, p.dtype, [&](auto which, auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    constexpr auto kind = static_cast<PointwiseLoss>(decltype(which)::kValue);
    const T *x = static_cast<const T*>(p.x), *target = static_cast<const T*>(p.target);
    T* dx = static_cast<T*>(p.dx);
    if (p.dy != nullptr) {
      elementwise(p.count, dx, SlopeEach<kind, C>{}, stream, x, target, static_cast<const T*>(p.dy));
    } else {
      elementwise(p.count, dx, SlopeOfSum<kind, T>{static_cast<const T*>(p.number), static_cast<C>(p.slope)},
                  stream, x, target);
    }
  });
}

}  // namespace fastnn::cuda
