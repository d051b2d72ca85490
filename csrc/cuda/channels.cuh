// Reductions and maps over the channels of [N, C, L] or [N, L, C], for batch and group norm.
//
// Bound by memory. A cell is what has statistics of its own: a channel of the batch, or of each sample.
// Groups of threads reduce one cell (or, channels last, blocks 32 neighbouring ones) over one of at most
// kParts ranges; whoever needs the result merges the ranges in order, so the bits are the same in every run.
// Maps take packs of 16 bytes.
#pragma once
#include "cuda/divide.cuh"
#include "cuda/reduce.cuh"

namespace fastnn::cuda {

constexpr int kChannelThreads = 256;
constexpr int kParts = 64;
constexpr int kRowWarps = kChannelThreads / kWarp;
constexpr int64_t kPartLength = 2048;  // numbers of a cell that are worth a block of their own
constexpr int64_t kWarpLength = 512;   // numbers of a cell that a warp takes alone

// How the cells lie: planes [outer, cells, length], or rows [images, rows, channels] with cells = images *
// channels.
struct Cells {
  bool last = false;
  int64_t outer = 1, cells = 1, length = 1;    // planes
  int64_t images = 1, rows = 1, channels = 1;  // rows

  // per_sample: a cell is a channel of one sample.
  static Cells of(int64_t N, int64_t C, int64_t L, bool last, bool per_sample) {
    Cells c;
    c.last = last;
    c.outer = per_sample ? 1 : N;
    c.cells = per_sample ? N * C : C;
    c.length = L;
    c.images = per_sample ? N : 1;
    c.rows = per_sample ? L : N * L;
    c.channels = C;
    return c;
  }
  int64_t numbers() const { return last ? rows : outer * length; }  // of a cell
  // At most `most`; whoever merges the parts of a cell by one thread leaves it at kParts.
  int parts(int64_t most = kParts) const {
    const int64_t parts = ceil_div(numbers(), kPartLength);
    return static_cast<int>(parts < most ? parts : most);
  }
};

// What is summed over a cell: V of a thread's numbers, merged by Join.
//
// Sums are doubles: GPUs for computing add them faster than memory delivers floats, and squares
// of floats neither cancel nor overflow. Doubles themselves are summed around the first number of the cells
// that share statistics, their pivot.
template <class T>
struct Pivots {
  const T* x;
  int64_t per_image, image, stride;  // shared statistics in an image; distances in memory

  // `sharing` neighbouring cells have one pivot; 1 for planes.
  Pivots(const T* x, const Cells& c, int64_t sharing)
      : x(x),
        per_image((c.last ? c.channels : c.cells) / sharing),
        image(c.last ? c.rows * c.channels : 0),
        stride(c.last ? sharing : c.length) {}
  __device__ __forceinline__ double operator()(int64_t i) const {
    if constexpr (sizeof(T) < sizeof(double)) {
      return 0;
    } else {
      const int64_t n = i / per_image;
      return x[n * image + (i - n * per_image) * stride];
    }
  }
};

// Forward: the sums of x - pivot and of its squares.
template <class T>
struct CellMoments {
  using V = Two<double>;
  using Join = SumTwo;
  const T* x;
  Pivots<T> pivots;
  int64_t sharing;

  struct Thread {
    double pivot;
    V sums;
    __device__ __forceinline__ V result() const { return sums; }
  };
  __device__ __forceinline__ Thread start(int64_t cell) const { return {pivots(cell / sharing), {0, 0}}; }
  __device__ __forceinline__ void add(Thread& t, int64_t at) const {
    const double d = static_cast<double>(load(x[at])) - t.pivot;
    t.sums.a += d;
    t.sums.b += d * d;
  }
};
// What they say of n numbers.
struct Statistics {
  double mean, variance;  // the biased one

  __device__ __forceinline__ Statistics(const Two<double>& sums, double pivot, double n) {
    const double shift = sums.a / n, spread = sums.b / n - shift * shift;
    mean = pivot + shift;
    variance = spread < 0 ? 0 : spread;  // a rounding error below; NaN stays
  }
  // The mean less its rounding to C: where it is far from zero, that matters to x - mean.
  template <class C>
  __device__ __forceinline__ C lost() const {
    const double rest = mean - static_cast<double>(static_cast<C>(mean));
    return rest == rest ? static_cast<C>(rest) : C(0);  // infinite means have none
  }
};

// Backward: the sums of dy and dy (x - mean). `sharing` neighbouring cells have one mean.
template <class T>
struct CellGradients {
  using C = Compute<T>;
  using V = Two<double>;
  using Join = SumTwo;
  const T *dy, *x;
  const C* mean;
  int64_t sharing;

  struct Thread {
    double mean;
    V sums;
    __device__ __forceinline__ V result() const { return sums; }
  };
  __device__ __forceinline__ Thread start(int64_t cell) const {
    return {static_cast<double>(mean[cell / sharing]), {0, 0}};
  }
  __device__ __forceinline__ void add(Thread& t, int64_t at) const {
    const double g = load(dy[at]);
    t.sums.a += g;
    t.sums.b += g * (static_cast<double>(load(x[at])) - t.mean);
  }
};

// Planes: group (cell, part) of kGroup threads, a warp or a block. Number e of the cell is at
// (e / length * cells + cell) * length + e % length; the thread keeps quotient and remainder as it steps.
template <int kGroup, class Reduction>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    reduce_planes(Reduction r, typename Reduction::V* parts, int64_t outer, int64_t cells, int64_t length) {
  const int64_t cell = int64_t{blockIdx.x} * (kChannelThreads / kGroup) + threadIdx.x / kGroup;
  if (cell >= cells) return;  // whole groups
  const int64_t numbers = outer * length;
  const int64_t per_part = (numbers + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * per_part;
  const int64_t end = begin + per_part < numbers ? begin + per_part : numbers;
  const int64_t step_n = kGroup / length, step_l = kGroup % length;
  auto seen = r.start(cell);
  int64_t e = begin + threadIdx.x % kGroup, n = e / length, l = e % length;
#pragma unroll 4
  for (; e < end; e += kGroup) {
    r.add(seen, (n * cells + cell) * length + l);
    n += step_n;
    l += step_l;
    if (l >= length) {
      l -= length;
      ++n;
    }
  }
  const auto all = group_reduce<kGroup>(seen.result(), typename Reduction::Join());
  if (threadIdx.x % kGroup == 0) parts[blockIdx.y * cells + cell] = all;
}

// Rows: block (32 channels of an image, part), each warp a row at a time.
template <class Reduction>
__global__ void __launch_bounds__(kChannelThreads, kTwoBlocks)
    reduce_rows(Reduction r, typename Reduction::V* parts, int64_t images, int64_t rows, int64_t channels) {
  using V = typename Reduction::V;
  FASTNN_SHARED(V, of_warp, kChannelThreads);
  const int64_t groups = (channels + kWarp - 1) / kWarp, image = blockIdx.x / groups;
  const int64_t channel = (blockIdx.x - image * groups) * kWarp + threadIdx.x,
                cell = image * channels + channel;
  const int64_t per_part = (rows + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * per_part;
  const int64_t end = begin + per_part < rows ? begin + per_part : rows;
  if (channel < channels) {
    const int64_t first = image * rows * channels + channel;
    auto seen = r.start(cell);
#pragma unroll 4
    for (int64_t row = begin + threadIdx.y; row < end; row += kRowWarps) r.add(seen, first + row * channels);
    of_warp[threadIdx.y * kWarp + threadIdx.x] = seen.result();
  }
  __syncthreads();
  if (threadIdx.y != 0 || channel >= channels) return;
  V all = of_warp[threadIdx.x];
  for (int warp = 1; warp < kRowWarps; ++warp) {
    all = typename Reduction::Join()(all, of_warp[warp * kWarp + threadIdx.x]);
  }
  parts[blockIdx.y * images * channels + cell] = all;
}

template <class V, class Join>
__device__ __forceinline__ V merged(const V* parts, int count, int64_t cells, int64_t cell,
                                    const Join& join) {
  V all = parts[cell];
  for (int part = 1; part < count; ++part) all = join(all, parts[part * cells + cell]);
  return all;
}

// parts[part][cell], `count` of them.
template <class Reduction>
void reduce_cells(const Reduction& r, typename Reduction::V* parts, int count, const Cells& c,
                  Stream stream) {
  const auto start = [&](auto kernel, dim3 grid, dim3 block, int64_t a, int64_t b, int64_t d) {
    grid.y = static_cast<unsigned>(count);
    launch(kernel, grid, block, 0, stream, r, parts, a, b, d);
  };
  if (c.last) {
    start(reduce_rows<Reduction>, grid_for(c.images * ceil_div(c.channels, kWarp), 1), dim3(kWarp, kRowWarps),
          c.images, c.rows, c.channels);
  } else if (c.numbers() <= kWarpLength) {
    start(reduce_planes<kWarp, Reduction>, grid_for(c.cells, kRowWarps), dim3(kChannelThreads), c.outer,
          c.cells, c.length);
  } else {
    start(reduce_planes<kChannelThreads, Reduction>, grid_for(c.cells, 1), dim3(kChannelThreads), c.outer,
          c.cells, c.length);
  }
}

// Which cell an element belongs to, as map_kernel steps from one to the next.
struct CellOf {
  bool last;
  int64_t cells, length, channels;       // length: of a plane, or of an image of rows
  Divisor<int64_t> by_length, by_inner;  // inner: cells of planes, channels of rows

  explicit CellOf(const Cells& c)
      : last(c.last),
        cells(c.cells),
        length(c.last ? c.rows * c.channels : c.length),
        channels(c.channels),
        by_length(length),
        by_inner(c.last ? c.channels : c.cells) {}

  // at: position in the plane, or channel; left: rows only, elements before the image ends.
  struct Place {
    int64_t cell, at, left;
  };
  __device__ __forceinline__ Place place(int64_t i) const {
    const int64_t outer = by_length.quotient(i), within = i - outer * length;
    if (!last) return {outer - by_inner.quotient(outer) * cells, within, 0};
    const int64_t channel = within - by_inner.quotient(within) * channels;
    return {outer * channels + channel, channel, length - within};
  }
  __device__ __forceinline__ void step(Place& p) const {
    if (!last) {
      if (++p.at < length) return;
      p.at = 0;
      p.cell = p.cell + 1 == cells ? 0 : p.cell + 1;
    } else {
      ++p.cell;
      --p.left;
      if (++p.at < channels) return;
      p.at = 0;
      if (p.left > 0) {
        p.cell -= channels;  // the next row of the same image
      } else {
        p.left = length;
      }
    }
  }
};

// out[i] = f(in[i]..., cell of i), N elements a thread: a pack, or one where a pointer is misaligned.
template <int N, class T, class F>
__global__ void __launch_bounds__(kChannelThreads) map_kernel(F f, T* out, int64_t n, CellOf cell_of) {
  const int64_t first = (int64_t{blockIdx.x} * kChannelThreads + threadIdx.x) * N;
  if (first >= n) return;
  const bool whole = N > 1 && first + N <= n;
  Pack<T> in[F::kInputs], y;
#pragma unroll
  for (int k = 0; k < F::kInputs; ++k) {
    if (whole) {
      in[k] = load_pack(f.in[k] + first);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) in[k].v[j] = first + j < n ? f.in[k][first + j] : T{};
    }
  }
  auto place = cell_of.place(first);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if (first + j >= n) break;
    Compute<T> v[F::kInputs];
#pragma unroll
    for (int k = 0; k < F::kInputs; ++k) v[k] = load(in[k].v[j]);
    y.v[j] = store<T>(f(v, place.cell));
    cell_of.step(place);
  }
  if (whole) {
    store_pack(out + first, y);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (first + j < n) out[first + j] = y.v[j];
  }
}

template <class T, class F>
void map_cells(const F& f, T* out, int64_t n, const Cells& c, Stream stream) {
  bool packed = is_aligned(out);
  for (const T* in : f.in) packed = packed && is_aligned(in);
  const auto start = [&](auto kernel, int N) {
    launch(kernel, grid_for(ceil_div(n, N), kChannelThreads), dim3(kChannelThreads), 0, stream, f, out, n,
           CellOf(c));
  };
  packed ? start(map_kernel<Pack<T>::N, T, F>, Pack<T>::N) : start(map_kernel<1, T, F>, 1);
}

// y = (x - mean) scale + offset, one number of each per cell.
template <class T>
struct Normalise {
  using C = Compute<T>;
  static constexpr int kInputs = 1;
  const T* in[1];
  const C *mean, *scale, *offset;
  __device__ __forceinline__ C operator()(const C (&v)[1], int64_t cell) const {
    return (v[0] - mean[cell]) * scale[cell] + offset[cell];
  }
};

}  // namespace fastnn::cuda
