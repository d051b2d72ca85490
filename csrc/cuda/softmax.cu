// Softmax and log-softmax over one dimension of [outer, length, inner].
//
// inner = 1: rows in the registers of a warp or a block (rows.cuh), x is read once; a longer row is read
// twice, maximum and sum kept online in the first pass. inner > 1: a block takes 32 neighbouring columns, its
// 8 warps share their length; every access is a warp's run of neighbours. Forward: y = exp(x - max) / sum,
// log: x - max - log(sum). Backward: dx = y (dy - sum(dy y)), log: dy - exp(y) sum(dy).
#include "cuda/online.cuh"
#include "cuda/rows.cuh"
#include "cuda/softmax.h"

namespace fastnn::cuda {
namespace {

template <bool kLog, class C>
struct Formula {
  C maximum, factor;  // factor: 1 / sum, log: log(sum)
  __device__ __forceinline__ Formula(C maximum, C sum)
      : maximum(maximum), factor(kLog ? logarithm(sum) : C(1) / sum) {}
  __device__ __forceinline__ C operator()(C x) const {
    return kLog ? x - maximum - factor : exponential(x - maximum) * factor;
  }
};

// The sum that the gradient of a row needs, element by element, and the gradient.
template <bool kLog, class C>
__device__ __forceinline__ C gradient_term(C dy, C y) {
  return kLog ? dy : dy * y;
}
template <bool kLog, class C>
__device__ __forceinline__ C gradient(C dy, C y, C sum, C sign) {
  return sign * (kLog ? dy - exponential(y) * sum : y * (dy - sum));
}

template <class T, int N, int kThreads, bool kHeldRow, bool kLog>
__global__ void __launch_bounds__(kThreads == kWarp ? kRowBlock : kThreads)
    rows_forward(const T* x, T* y, int64_t rows, int64_t length, Compute<T> sign) {
  using C = Compute<T>;
  using R = Row<T, N, kThreads>;
  const int64_t row = row_of_group<kThreads>();
  if (row >= rows) return;  // whole groups
  x += row * length;
  y += row * length;
  if constexpr (kHeldRow) {
    R r;
    r.read(x, length);
    C maximum = minus_infinity<C>();
    R::each(length, [&](int k, int j, int64_t) {
      r.v[k][j] *= sign;
      maximum = Maximum()(maximum, r.v[k][j]);
    });
    maximum = group_reduce<kThreads>(maximum, Maximum());
    C sum = 0;
    R::each(length, [&](int k, int j, int64_t) {
      const C e = exponential(r.v[k][j] - maximum);
      if (!kLog) r.v[k][j] = e;
      sum += e;
    });
    sum = group_reduce<kThreads>(sum, Sum());
    const C rest = kLog ? logarithm(sum) : C(1) / sum;
    R::each(length,
            [&](int k, int j, int64_t) { r.v[k][j] = kLog ? r.v[k][j] - maximum - rest : r.v[k][j] * rest; });
    r.write(y, length);
  } else {
    C piece[N];
    Online<C> seen = nothing<C>();
    for (int64_t at = int64_t{threadIdx.x} * N; at < length; at += kThreads * N) {
      R::read_piece(x + at, piece);
#pragma unroll
      for (int j = 0; j < N; ++j) seen = with(seen, sign * piece[j]);
    }
    seen = group_reduce<kThreads>(seen, MergeOnline());
    const Formula<kLog, C> formula(seen.maximum, seen.sum);
    for (int64_t at = int64_t{threadIdx.x} * N; at < length; at += kThreads * N) {
      R::read_piece(x + at, piece);
#pragma unroll
      for (int j = 0; j < N; ++j) piece[j] = formula(sign * piece[j]);
      R::write_piece(y + at, piece);
    }
  }
}

// Both inputs of a warp's row in registers would spill: y is read again, from the first cache.
template <class T, int N, int kThreads, bool kLog>
__global__ void __launch_bounds__(kThreads == kWarp ? kRowBlock : kThreads)
    rows_backward(const T* dy, const T* y, T* dx, int64_t rows, int64_t length, Compute<T> sign) {
  using C = Compute<T>;
  using R = Row<T, N, kThreads>;
  const int64_t row = row_of_group<kThreads>();
  if (row >= rows) return;
  dy += row * length;
  y += row * length;
  dx += row * length;
  const int64_t first = int64_t{threadIdx.x % kThreads} * N;
  C sum = 0, of_dy[N], of_y[N];
#pragma unroll kInFlight < T>
  for (int64_t at = first; at < length; at += kThreads * N) {
    R::read_piece(dy + at, of_dy);
    R::read_piece(y + at, of_y);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += gradient_term<kLog>(of_dy[j], of_y[j]);
  }
  sum = group_reduce<kThreads>(sum, Sum());
#pragma unroll kInFlight < T>
  for (int64_t at = first; at < length; at += kThreads * N) {
    R::read_piece(dy + at, of_dy);
    R::read_piece(y + at, of_y);
#pragma unroll
    for (int j = 0; j < N; ++j) of_dy[j] = gradient<kLog>(of_dy[j], of_y[j], sum, sign);
    R::write_piece(dx + at, of_dy);
  }
}

// ---- inner > 1 ----

template <class T, bool kLog>
__global__ void __launch_bounds__(kWarp* kSplits)
    columns_forward(const T* x, T* y, int64_t outer, int64_t length, int64_t inner, Compute<T> sign) {
  using C = Compute<T>;
  const Column column = column_of_thread(outer, length, inner);
  Online<C> seen = nothing<C>();
  if (column.exists) {
#pragma unroll kInFlight < T>
    for (int64_t l = threadIdx.y; l < length; l += kSplits) {
      seen = with(seen, sign * load(x[column.begin + l * inner]));
    }
  }
  seen = merge_splits(seen, MergeOnline());
  if (!column.exists) return;
  const Formula<kLog, C> formula(seen.maximum, seen.sum);
#pragma unroll kInFlight < T>
  for (int64_t l = threadIdx.y; l < length; l += kSplits) {
    const int64_t at = column.begin + l * inner;
    y[at] = store<T>(formula(sign * load(x[at])));
  }
}

template <class T, bool kLog>
__global__ void __launch_bounds__(kWarp* kSplits)
    columns_backward(const T* dy, const T* y, T* dx, int64_t outer, int64_t length, int64_t inner,
                     Compute<T> sign) {
  using C = Compute<T>;
  const Column column = column_of_thread(outer, length, inner);
  C sum = 0;
  if (column.exists) {
#pragma unroll kInFlight < T>
    for (int64_t l = threadIdx.y; l < length; l += kSplits) {
      const int64_t at = column.begin + l * inner;
      sum += gradient_term<kLog>(load(dy[at]), load(y[at]));
    }
  }
  sum = merge_splits(sum, Sum());
  if (!column.exists) return;
#pragma unroll kInFlight < T>
  for (int64_t l = threadIdx.y; l < length; l += kSplits) {
    const int64_t at = column.begin + l * inner;
    dx[at] = store<T>(gradient<kLog>(load(dy[at]), load(y[at]), sum, sign));
  }
}

template <class T, bool kLog>
void forward(const SoftmaxParams& p, Stream stream) {
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const Compute<T> sign = p.negate ? -1 : 1;
  if (p.inner > 1) {
    launch(columns_forward<T, kLog>, grid_for(p.outer * p.inner, kWarp), dim3(kWarp, kSplits), 0, stream, x,
           y, p.outer, p.length, p.inner, sign);
    return;
  }
  visit_rows<T>(p.length, rows_are_packed<T>(p.length, x, y), [&](auto n, auto threads, auto held) {
    constexpr int N = decltype(n)::kValue, kThreads = decltype(threads)::kValue;
    launch(rows_forward<T, N, kThreads, decltype(held)::value, kLog>, row_grid<kThreads>(p.outer),
           row_block<kThreads>(), 0, stream, x, y, p.outer, p.length, sign);
  });
}

template <class T, bool kLog>
void backward(const SoftmaxBackwardParams& p, Stream stream) {
  const T *dy = static_cast<const T*>(p.dy), *y = static_cast<const T*>(p.y);
  T* dx = static_cast<T*>(p.dx);
  const Compute<T> sign = p.negate ? -1 : 1;
  if (p.inner > 1) {
    launch(columns_backward<T, kLog>, grid_for(p.outer * p.inner, kWarp), dim3(kWarp, kSplits), 0, stream, dy,
           y, dx, p.outer, p.length, p.inner, sign);
    return;
  }
  visit_rows<T>(p.length, rows_are_packed<T>(p.length, dy, y, dx), [&](auto n, auto threads, auto) {
    constexpr int N = decltype(n)::kValue, kThreads = decltype(threads)::kValue;
    launch(rows_backward<T, N, kThreads, kLog>, row_grid<kThreads>(p.outer), row_block<kThreads>(), 0, stream,
           dy, y, dx, p.outer, p.length, sign);
  });
}

}  // namespace

void softmax_forward(const SoftmaxParams& p, Stream stream) {
  if (p.outer * p.length * p.inner == 0) return;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    p.log ? forward<T, true>(p, stream) : forward<T, false>(p, stream);
  });
}

void softmax_backward(const SoftmaxBackwardParams& p, Stream stream) {
  if (p.outer * p.length * p.inner == 0) return;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    p.log ? backward<T, true>(p, stream) : backward<T, false>(p, stream);
  });
}

}  // namespace fastnn::cuda
