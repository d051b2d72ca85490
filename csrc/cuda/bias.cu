// A pass over dy; channels.cuh reduces ranges of each channel, one thread a channel adds them.
#include "cuda/bias.cuh"
#include "cuda/channels.cuh"

namespace fastnn::cuda {
namespace {

template <class T>
struct CellSum {
  using V = double;
  using Join = Sum;
  const T* dy;

  struct Thread {
    double sum;
    __device__ __forceinline__ double result() const { return sum; }
  };
  __device__ __forceinline__ Thread start(int64_t) const { return {0}; }
  __device__ __forceinline__ void add(Thread& t, int64_t at) const { t.sum += load(dy[at]); }
};

template <class T>
__global__ void __launch_bounds__(kChannelThreads)
    finish_bias(const double* parts, int count, int64_t channels, T* db) {
  const int64_t c = int64_t{blockIdx.x} * kChannelThreads + threadIdx.x;
  if (c >= channels) return;
  const double sum = count == 0 ? 0 : merged(parts, count, channels, c, Sum());
  db[c] = store<T>(static_cast<Compute<T>>(sum));
}

}  // namespace

int64_t bias_workspace(int64_t N, int64_t C, int64_t L, bool last) {
  return Cells::of(N, C, L, last, /*per_sample=*/false).parts() * C * static_cast<int64_t>(sizeof(double));
}

void bias_backward(DType dtype, const void* dy, int64_t N, int64_t C, int64_t L, bool last, void* db,
                   void* workspace, Stream stream) {
  if (C == 0) return;
  visit(dtype, [&](auto element) {
    using T = decltype(element);
    const Cells cells = Cells::of(N, C, L, last, /*per_sample=*/false);
    const int count = cells.parts();  // 0 of an empty tensor
    double* parts = static_cast<double*>(workspace);
    if (count > 0) reduce_cells(CellSum<T>{static_cast<const T*>(dy)}, parts, count, cells, stream);
    launch(finish_bias<T>, grid_for(C, kChannelThreads), dim3(kChannelThreads), 0, stream,
           static_cast<const double*>(parts), count, C, static_cast<T*>(db));
  });
}

}  // namespace fastnn::cuda
