// Linear of at most kMostRows rows, as inference and recurrent steps have them: bound by reading w, which
// goes by once; x stays in the first cache. A warp has two output features, its lanes packs of the sum.
#include "cuda/linear.cuh"
#include "cuda/reduce.cuh"

namespace fastnn::cuda {
namespace {

constexpr int kMostRows = 8, kWarps = 8, kFeatures = 2;

template <class T>
struct FewRows {
  using C = Compute<T>;
  const T *x, *w, *bias;
  T* y;
  int64_t x_row, w_row, N, depth, K;
  bool packed;

  // Numbers [k, k + P) of a row, zeros beyond its end.
  __device__ __forceinline__ Pack<T> pack_at(const T* row, int64_t k) const {
    if (packed) return load_pack(row + k);
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < Pack<T>::N; ++j) pack.v[j] = k + j < depth ? row[k + j] : T{};
    return pack;
  }
};

// kRows: 1 or kMostRows, of which some may not exist.
template <class T, int kRows>
__global__ void __launch_bounds__(kWarps* kWarp, kTwoBlocks) few_rows_kernel(FewRows<T> p) {
  using C = Compute<T>;
  constexpr int P = Pack<T>::N;
  const int lane = threadIdx.x % kWarp;
  const int64_t first = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp) * kFeatures;
  if (first >= p.K) return;  // whole warps
  const bool second = first + 1 < p.K;
  const T *w0 = p.w + first * p.w_row, *w1 = second ? w0 + p.w_row : w0;
  C sums[kFeatures][kRows] = {};
#pragma unroll 2
  for (int64_t k = lane * P; k < p.depth; k += kWarp * P) {
    const Pack<T> a = p.pack_at(w0, k), b = p.pack_at(w1, k);
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      if (n >= p.N) break;
      const Pack<T> x = p.pack_at(p.x + n * p.x_row, k);
#pragma unroll
      for (int j = 0; j < P; ++j) {
        sums[0][n] = fma(load(a.v[j]), load(x.v[j]), sums[0][n]);
        sums[1][n] = fma(load(b.v[j]), load(x.v[j]), sums[1][n]);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    if (n >= p.N) break;
#pragma unroll
    for (int f = 0; f < kFeatures; ++f) {
      const C sum = warp_reduce(sums[f][n], Sum());
      if (lane != 0 || (f == 1 && !second)) continue;
      const C b = p.bias == nullptr ? C(0) : load(p.bias[first + f]);
      p.y[n * p.K + first + f] = store<T>(sum + b);
    }
  }
}

}  // namespace

bool takes_few_rows(const LinearParams& p) {
  return p.shape.N <= kMostRows && p.x.col == 1 && p.w.col == 1;
}

void linear_few_rows(const LinearParams& params, Stream stream) {
  visit(params.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int P = Pack<T>::N;
    FewRows<T> p;
    p.x = static_cast<const T*>(params.x.data), p.w = static_cast<const T*>(params.w.data);
    p.bias = static_cast<const T*>(params.bias), p.y = static_cast<T*>(params.y);
    p.x_row = params.x.row, p.w_row = params.w.row;
    p.N = params.shape.N, p.depth = params.shape.C, p.K = params.shape.K;
    p.packed = is_aligned(p.x) && is_aligned(p.w) && p.depth % P == 0 && p.w_row % P == 0 &&
               (p.N == 1 || p.x_row % P == 0);
    const auto start = [&](auto kernel) {
      launch(kernel, grid_for(p.K, kWarps * kFeatures), dim3(kWarps * kWarp), 0, stream, p);
    };
    p.N == 1 ? start(few_rows_kernel<T, 1>) : start(few_rows_kernel<T, kMostRows>);
  });
}

}  // namespace fastnn::cuda
