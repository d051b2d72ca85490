// Cross-entropy of the class t with weight w: loss = w (peak - x_t + log(sum)), sum = sum exp(x - peak).
// Backward: dx_c = w dy (exp(x_c - peak) / sum - [c = t]).
//
// Bound by memory: each direction reads x once. inner = 1: a warp or a block per row, maximum and sum kept
// online, a pack at a time. inner > 1: 32 neighbouring columns a block. The gradient needs no sum: packs are
// mapped. Sums over positions: loss_sums.cuh. Nothing waits for the host.
#include "cuda/divide.cuh"
#include "cuda/loss.h"
#include "cuda/loss_sums.cuh"
#include "cuda/online.cuh"
#include "cuda/rows.cuh"

namespace fastnn::cuda {
namespace {

template <class C>
struct Targets {
  const int64_t* index;
  const C* class_weight;
  int64_t ignored, classes;

  Targets(const ClassTargets& t, int64_t classes)
      : index(t.index),
        class_weight(static_cast<const C*>(t.class_weight)),
        ignored(t.ignored),
        classes(classes) {}
  __device__ __forceinline__ bool is_class(int64_t t) const { return t >= 0 && t < classes; }
  // Of the position: 0 where it is ignored, NaN where its target is no class.
  __device__ __forceinline__ C weight(int64_t t) const {
    if (t == ignored) return C(0);
    if (!is_class(t)) return static_cast<C>(__int_as_float(0x7fffffff));
    return class_weight == nullptr ? C(1) : class_weight[t];
  }
  template <class T>
  __device__ __forceinline__ C loss(int64_t position, const T* x, int64_t step, const Online<C>& seen) const {
    const int64_t t = index[position];
    if (t == ignored) return C(0);
    return weight(t) * (seen.maximum - (is_class(t) ? load(x[t * step]) : C(0)) + logarithm(seen.sum));
  }
};

template <class C>
struct Kept {
  C *peak, *sum, *loss;
  __device__ __forceinline__ void write(int64_t position, const Online<C>& seen, C of_position) const {
    peak[position] = seen.maximum;
    sum[position] = seen.sum + (seen.maximum - seen.maximum);  // NaN without a softmax, an infinite peak
    loss[position] = of_position;
  }
};

template <class T, int N, int kGroup>
__global__ void __launch_bounds__(kGroup == kWarp ? kRowBlock : kGroup, 1)
    rows_kernel(const T* x, Targets<Compute<T>> target, Kept<Compute<T>> kept, int64_t rows, int64_t length) {
  using C = Compute<T>;
  using R = Row<T, N, kGroup>;
  const int64_t row = row_of_group<kGroup>();
  if (row >= rows) return;  // whole groups
  x += row * length;
  Online<C> seen = nothing<C>();
  C piece[N];
#pragma unroll kInFlight < T>
  for (int64_t at = int64_t{threadIdx.x % kGroup} * N; at < length; at += kGroup * N) {
    R::read_piece(x + at, piece);
    C maximum = piece[0], sum = 0;
#pragma unroll
    for (int j = 1; j < N; ++j) maximum = Maximum()(maximum, piece[j]);
    if (maximum == minus_infinity<C>()) continue;
#pragma unroll
    for (int j = 0; j < N; ++j) sum += exponential(piece[j] - maximum);
    seen = MergeOnline()(seen, Online<C>{maximum, sum});
  }
  seen = group_reduce<kGroup>(seen, MergeOnline());
  if (threadIdx.x % kGroup == 0) kept.write(row, seen, target.loss(row, x, 1, seen));
}

template <class T>
__global__ void __launch_bounds__(kWarp* kSplits)
    columns_kernel(const T* x, Targets<Compute<T>> target, Kept<Compute<T>> kept, int64_t outer,
                   int64_t length, int64_t inner) {
  using C = Compute<T>;
  const Column column = column_of_thread(outer, length, inner);
  Online<C> seen = nothing<C>();
  if (column.exists) {
#pragma unroll kInFlight < T>
    for (int64_t l = threadIdx.y; l < length; l += kSplits)
      seen = with(seen, load(x[column.begin + l * inner]));
  }
  seen = merge_splits(seen, MergeOnline());
  if (!column.exists || threadIdx.y != 0) return;
  const int64_t position = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  kept.write(position, seen, target.loss(position, x + column.begin, inner, seen));
}

// dy times the weight of the position.
template <class C>
struct Slopes {
  Targets<C> target;
  const C *dy, *peak, *sum;
  bool number;
  const double* normaliser;  // or null: `scale`
  C scale;

  struct Position {
    int64_t target;
    C peak, factor, slope;
  };
  __device__ __forceinline__ Position position(int64_t i) const {
    const int64_t t = target.index[i];
    const C by = normaliser == nullptr ? scale : static_cast<C>(1 / *normaliser);
    // An ignored position has gradient 0 whatever dy is, but NaN where it has no softmax, as torch's product.
    const C slope = t == target.ignored ? C(0) : dy[number ? 0 : i] * by * target.weight(t);
    return {t, peak[i], slope / sum[i], slope};
  }
  __device__ __forceinline__ C gradient(const Position& p, C x, int64_t c) const {
    if (p.target == target.ignored) return p.factor * C(0);
    return exponential(x - p.peak) * p.factor - (c == p.target ? p.slope : C(0));
  }
};

// kRows: inner = 1, a pack has classes of one position. Otherwise it has one class of neighbouring positions.
template <int N, bool kRows, class T>
__global__ void __launch_bounds__(kLossThreads, kTwoBlocks)
    gradient_kernel(const T* x, T* dx, Slopes<Compute<T>> slopes, int64_t n, int64_t classes, int64_t inner,
                    Divisor<int64_t> by_classes, Divisor<int64_t> by_inner) {
  using C = Compute<T>;
  using R = Row<T, N, kWarp>;
  const int64_t first = (int64_t{blockIdx.x} * kLossThreads + threadIdx.x) * N;
  if (first >= n) return;
  C v[N];
  R::read_piece(x + first, v);
  if constexpr (kRows) {
    const int64_t row = by_classes.quotient(first), c = first - row * classes;
    const auto p = slopes.position(row);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = slopes.gradient(p, v[j], c + j);
  } else {
    const int64_t plane = by_inner.quotient(first), image = by_classes.quotient(plane);
    const int64_t c = plane - image * classes, position = image * inner + first - plane * inner;
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = slopes.gradient(slopes.position(position + j), v[j], c);
  }
  R::write_piece(dx + first, v);
}

// parts[part]: the sums of losses and of weights over a range.
template <class C>
__global__ void __launch_bounds__(kLossThreads, kTwoBlocks)
    sum_parts(const C* loss, Targets<C> target, bool weights, int64_t positions, Two<double>* parts) {
  const int64_t per_part = (positions + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * per_part;
  const int64_t end = begin + per_part < positions ? begin + per_part : positions;
  Two<double> sums = {0, 0};
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += kLossThreads) {
    sums.a += loss[i];
    if (weights) sums.b += target.weight(target.index[i]);
  }
  sums = group_reduce<kLossThreads>(sums, SumTwo());
  if (threadIdx.x == 0) parts[blockIdx.x] = sums;
}

}  // namespace

void cross_entropy_forward(const CrossEntropyParams& p, Stream stream) {
  const int64_t positions = p.N * p.inner;
  if (positions * p.C == 0) return;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    const T* x = static_cast<const T*>(p.x);
    const Targets<C> target(p.target, p.C);
    const Kept<C> kept{static_cast<C*>(p.peak), static_cast<C*>(p.sum), static_cast<C*>(p.loss)};
    if (p.inner > 1) {
      launch(columns_kernel<T>, grid_for(positions, kWarp), dim3(kWarp, kSplits), 0, stream, x, target, kept,
             p.N, p.C, p.inner);
      return;
    }
    visit_rows<T>(p.C, rows_are_packed<T>(p.C, x), [&](auto n, auto threads, auto) {
      constexpr int N = decltype(n)::kValue, kGroup = decltype(threads)::kValue;
      launch(rows_kernel<T, N, kGroup>, row_grid<kGroup>(p.N), row_block<kGroup>(), 0, stream, x, target,
             kept, p.N, p.C);
    });
  });
}

void cross_entropy_backward(const CrossEntropyBackwardParams& p, Stream stream) {
  const int64_t n = p.N * p.C * p.inner;
  if (n == 0) return;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    const T* x = static_cast<const T*>(p.x);
    T* dx = static_cast<T*>(p.dx);
    const Slopes<C> slopes{Targets<C>(p.target, p.C),
                           static_cast<const C*>(p.dy),
                           static_cast<const C*>(p.peak),
                           static_cast<const C*>(p.sum),
                           p.dy_is_number,
                           p.normaliser,
                           static_cast<C>(p.scale)};
    const auto start = [&](auto kernel, int N) {
      launch(kernel, grid_for(n / N, kLossThreads), dim3(kLossThreads), 0, stream, x, dx, slopes, n, p.C,
             p.inner, Divisor<int64_t>(p.C), Divisor<int64_t>(p.inner));
    };
    constexpr int N = Pack<T>::N;
    const bool rows = p.inner == 1, packed = rows_are_packed<T>(rows ? p.C : p.inner, x, dx);
    if (rows) {
      packed ? start(gradient_kernel<N, true, T>, N) : start(gradient_kernel<1, true, T>, 1);
    } else {
      packed ? start(gradient_kernel<N, false, T>, N) : start(gradient_kernel<1, false, T>, 1);
    }
  });
}

void sum_cross_entropy(const CrossEntropyParams& p, bool mean, void* loss, double* divisor, double* workspace,
                       Stream stream) {
  const int64_t positions = p.N * p.inner;
  const int count = loss_parts(positions);
  Two<double>* parts = reinterpret_cast<Two<double>*>(workspace);
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    if (count > 0) {
      launch(sum_parts<C>, dim3(static_cast<unsigned>(count)), dim3(kLossThreads), 0, stream,
             static_cast<const C*>(p.loss), Targets<C>(p.target, p.C), mean, positions, parts);
    }
    launch(finish_sum<T>, dim3(1), dim3(kLossThreads), 0, stream, static_cast<const Two<double>*>(parts),
           count, mean ? 0.0 : 1.0, static_cast<T*>(loss), divisor);
  });
}

}  // namespace fastnn::cuda
