// Layer and RMS norm, y = (x - mean) rstd w + b per row of [rows, length].
//
// Bound by memory. Forward and dx: a warp or a block per row (rows.cuh), read again from cache where it is
// needed again: the mean first, then the squares around it, so nothing cancels. dx = rstd (g - mean(g) - xhat
// mean(g xhat)), g = dy w. dw and db sum over rows: stage one, a block takes 32 columns and one of at most
// kParts ranges of rows, stage two adds the ranges in order; so the bits are the same in every run.
#include "cuda/normalization.h"
#include "cuda/rows.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kParts = 64;    // ranges of rows: 1024 columns make 2048 blocks, enough for 132 SMs
constexpr int kRowWarps = 8;  // warps of a block that share a range

template <class C>
__device__ __forceinline__ C or_one(const C* p, int64_t i) {
  return p == nullptr ? C(1) : p[i];
}
template <class C>
__device__ __forceinline__ C or_zero(const C* p, int64_t i) {
  return p == nullptr ? C(0) : p[i];
}

template <class T, int N, int kThreads>
__global__ void __launch_bounds__(kThreads == kWarp ? kRowBlock : kThreads)
    forward_kernel(const T* x, T* y, const Compute<T>* weight, const Compute<T>* bias, Compute<T>* means,
                   Compute<T>* rstds, int64_t rows, int64_t length, bool rms, Compute<T> eps) {
  using C = Compute<T>;
  using R = Row<T, N, kThreads>;
  const int64_t row = row_of_group<kThreads>();
  if (row >= rows) return;  // whole groups
  x += row * length;
  y += row * length;
  const int64_t first = int64_t{threadIdx.x % kThreads} * N;
  C piece[N], mean = 0, sum = 0;  // sum: of x - pivot, then of squares
  if (!rms) {
    // Around the row's first number: a sum of large numbers would lose what makes them differ.
    const C pivot = load(x[0]);
#pragma unroll kInFlight < T>
    for (int64_t at = first; at < length; at += kThreads * N) {
      R::read_piece(x + at, piece);
#pragma unroll
      for (int j = 0; j < N; ++j) sum += piece[j] - pivot;
    }
    mean = group_reduce<kThreads>(sum, Sum()) / static_cast<C>(length) + pivot;
    sum = 0;
  }
#pragma unroll kInFlight < T>
  for (int64_t at = first; at < length; at += kThreads * N) {
    R::read_piece(x + at, piece);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += (piece[j] - mean) * (piece[j] - mean);
  }
  const C variance = group_reduce<kThreads>(sum, Sum()) / static_cast<C>(length);
  const C rstd = inverse_root(variance + eps);
  if (threadIdx.x % kThreads == 0) {
    if (means != nullptr) means[row] = mean;
    rstds[row] = rstd;
  }
#pragma unroll kInFlight < T>
  for (int64_t at = first; at < length; at += kThreads * N) {
    R::read_piece(x + at, piece);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      piece[j] = (piece[j] - mean) * rstd * or_one(weight, at + j) + or_zero(bias, at + j);
    }
    R::write_piece(y + at, piece);
  }
}

template <class T, int N, int kThreads>
__global__ void __launch_bounds__(kThreads == kWarp ? kRowBlock : kThreads)
    dx_kernel(const T* dy, const T* x, T* dx, const Compute<T>* weight, const Compute<T>* means,
              const Compute<T>* rstds, int64_t rows, int64_t length) {
  using C = Compute<T>;
  using R = Row<T, N, kThreads>;
  const int64_t row = row_of_group<kThreads>();
  if (row >= rows) return;
  dy += row * length;
  x += row * length;
  dx += row * length;
  const bool rms = means == nullptr;
  const C mean = or_zero(means, row), rstd = rstds[row], share = C(1) / static_cast<C>(length);
  const int64_t first = int64_t{threadIdx.x % kThreads} * N;
  C of_dy[N], of_x[N];
  Two<C> sums = {0, 0};  // of g and g xhat
#pragma unroll kInFlight < T>
  for (int64_t at = first; at < length; at += kThreads * N) {
    R::read_piece(dy + at, of_dy);
    R::read_piece(x + at, of_x);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const C g = of_dy[j] * or_one(weight, at + j);
      sums.a += g;
      sums.b += g * ((of_x[j] - mean) * rstd);
    }
  }
  sums = group_reduce<kThreads>(sums, SumTwo());
  const C of_g = rms ? C(0) : sums.a * share, along = sums.b * share;
#pragma unroll kInFlight < T>
  for (int64_t at = first; at < length; at += kThreads * N) {
    R::read_piece(dy + at, of_dy);
    R::read_piece(x + at, of_x);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const C xhat = (of_x[j] - mean) * rstd;
      of_dy[j] = rstd * (of_dy[j] * or_one(weight, at + j) - of_g - xhat * along);
    }
    R::write_piece(dx + at, of_dy);
  }
}

// parts[part][column]: sums of dy xhat and of dy over the rows of a part.
template <class T>
__global__ void __launch_bounds__(kWarp* kRowWarps)
    parameter_parts(const T* dy, const T* x, const Compute<T>* means, const Compute<T>* rstds,
                    Two<Compute<T>>* parts, int64_t rows, int64_t length) {
  using C = Compute<T>;
  FASTNN_SHARED(Two<C>, of_warp, kWarp * kRowWarps);
  const int64_t column = int64_t{blockIdx.x} * kWarp + threadIdx.x;
  const int64_t per_part = (rows + gridDim.y - 1) / gridDim.y;
  const int64_t begin = blockIdx.y * per_part, end = begin + per_part < rows ? begin + per_part : rows;
  Two<C> sums = {0, 0};
  if (column < length) {
#pragma unroll kInFlight < T>
    for (int64_t row = begin + threadIdx.y; row < end; row += kRowWarps) {
      const C g = load(dy[row * length + column]);
      sums.a += g * ((load(x[row * length + column]) - or_zero(means, row)) * rstds[row]);
      sums.b += g;
    }
  }
  of_warp[threadIdx.y * kWarp + threadIdx.x] = sums;
  __syncthreads();
  if (threadIdx.y != 0 || column >= length) return;
#pragma unroll
  for (int warp = 1; warp < kRowWarps; ++warp) sums = SumTwo()(sums, of_warp[warp * kWarp + threadIdx.x]);
  parts[blockIdx.y * length + column] = sums;
}

template <class C>
__global__ void __launch_bounds__(kRowBlock)
    add_parts(const Two<C>* parts, int count, C* dweight, C* dbias, int64_t length) {
  const int64_t column = int64_t{blockIdx.x} * kRowBlock + threadIdx.x;
  if (column >= length) return;
  Two<C> sums = {0, 0};
#pragma unroll 4
  for (int part = 0; part < count; ++part) sums = SumTwo()(sums, parts[part * length + column]);
  if (dweight != nullptr) dweight[column] = sums.a;
  if (dbias != nullptr) dbias[column] = sums.b;
}

// A part has rows for every warp of its block.
int parts_of(int64_t rows) {
  const int64_t parts = ceil_div(rows, kRowWarps);
  return static_cast<int>(parts < kParts ? parts : kParts);
}

template <class T>
void forward(const LayerNormParams& p, Stream stream) {
  using C = Compute<T>;
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  visit_rows<T>(p.length, rows_are_packed<T>(p.length, x, y), [&](auto n, auto threads, auto) {
    constexpr int N = decltype(n)::kValue, kThreads = decltype(threads)::kValue;
    launch(forward_kernel<T, N, kThreads>, row_grid<kThreads>(p.rows), row_block<kThreads>(), 0, stream, x, y,
           static_cast<const C*>(p.weight), static_cast<const C*>(p.bias), static_cast<C*>(p.mean),
           static_cast<C*>(p.rstd), p.rows, p.length, p.rms, static_cast<C>(p.eps));
  });
}

template <class T>
void backward(const LayerNormBackwardParams& p, void* workspace, Stream stream) {
  using C = Compute<T>;
  const T *dy = static_cast<const T*>(p.dy), *x = static_cast<const T*>(p.x);
  const C *mean = static_cast<const C*>(p.mean), *rstd = static_cast<const C*>(p.rstd);
  if (p.dx != nullptr) {
    T* dx = static_cast<T*>(p.dx);
    visit_rows<T>(p.length, rows_are_packed<T>(p.length, dy, x, dx), [&](auto n, auto threads, auto) {
      constexpr int N = decltype(n)::kValue, kThreads = decltype(threads)::kValue;
      launch(dx_kernel<T, N, kThreads>, row_grid<kThreads>(p.rows), row_block<kThreads>(), 0, stream, dy, x,
             dx, static_cast<const C*>(p.weight), mean, rstd, p.rows, p.length);
    });
  }
  if (p.dweight == nullptr && p.dbias == nullptr) return;
  const int count = parts_of(p.rows);
  Two<C>* parts = static_cast<Two<C>*>(workspace);
  dim3 grid = grid_for(p.length, kWarp);
  grid.y = static_cast<unsigned>(count);
  launch(parameter_parts<T>, grid, dim3(kWarp, kRowWarps), 0, stream, dy, x, mean, rstd, parts, p.rows,
         p.length);
  launch(add_parts<C>, grid_for(p.length, kRowBlock), dim3(kRowBlock), 0, stream,
         static_cast<const Two<C>*>(parts), count, static_cast<C*>(p.dweight), static_cast<C*>(p.dbias),
         p.length);
}

}  // namespace

void layer_norm_forward(const LayerNormParams& p, Stream stream) {
  if (p.rows * p.length == 0) return;
  visit(p.dtype, [&](auto element) { forward<decltype(element)>(p, stream); });
}

int64_t layer_norm_workspace(const LayerNormBackwardParams& p) {
  return p.dweight == nullptr && p.dbias == nullptr ? 0 : 2 * parts_of(p.rows) * p.length;
}

void layer_norm_backward(const LayerNormBackwardParams& p, void* workspace, Stream stream) {
  if (p.rows * p.length == 0) return;
  visit(p.dtype, [&](auto element) { backward<decltype(element)>(p, workspace, stream); });
}

}  // namespace fastnn::cuda
