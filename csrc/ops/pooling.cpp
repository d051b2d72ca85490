// The arguments of pooling, checked. The ops stand in pooling_max.cpp and pooling_avg.cpp.
#include "ops/pooling.h"

#include <limits>

namespace fastnn::ops {
namespace {

constexpr const char* kShape = "a shape outside the kernels' domain";
constexpr const char* kArguments = "window arguments outside the kernels' domain";

// [C, ...] or [N, C, ...] where nothing but the batch is empty.
bool poolable(const Tensor& x, int64_t rank) {
  if (x.dim() != rank + 1 && x.dim() != rank + 2) return false;
  for (int64_t i = x.dim() - rank - 1; i < x.dim(); ++i)
    if (x.size(i) < 1) return false;
  return true;
}

// `list` for the last dimensions of out[3]: one number for all, or one each.
bool spread(at::IntArrayRef list, int64_t rank, int64_t least, int64_t* out) {
  const int64_t n = static_cast<int64_t>(list.size());
  if (n != 1 && n != rank) return false;
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t value = list[n == 1 ? 0 : i];
    if (value < least || value > std::numeric_limits<int32_t>::max()) return false;
    out[3 - rank + i] = value;
  }
  return true;
}

// A dilated window can fall between the elements of a small input; torch's answer is then its own.
bool every_window_reads(const Windows& w, int dim, int64_t in, int64_t out) {
  if (w.dilation[dim] == 1) return true;
  for (int64_t o = 0; o < out; ++o) {
    int64_t at = o * w.stride[dim] - w.padding[dim];
    const int64_t last = at + (w.kernel[dim] - 1) * w.dilation[dim];
    if (at < 0) at += (-at + w.dilation[dim] - 1) / w.dilation[dim] * w.dilation[dim];
    if (at > last || at >= in) return false;
  }
  return true;
}

}  // namespace

const char* read_fixed(const Tensor& x, int64_t rank, at::IntArrayRef kernel, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, Windows& w) {
  if (!poolable(x, rank)) return kShape;
  w.rank = rank;
  w.mode = ceil_mode ? Windows::kCeil : Windows::kFloor;
  if (!spread(kernel, rank, 1, w.kernel) || !spread(stride.empty() ? kernel : stride, rank, 1, w.stride) ||
      !spread(padding, rank, 0, w.padding) || !spread(dilation, rank, 1, w.dilation))
    return kArguments;
  int64_t taps = 1;
  for (int dim = static_cast<int>(3 - rank); dim < 3; ++dim) {
    const int64_t in = x.size(x.dim() - 3 + dim), extent = (w.kernel[dim] - 1) * w.dilation[dim] + 1;
    if (w.padding[dim] > extent / 2 || in + 2 * w.padding[dim] < extent) return kArguments;
    if (!every_window_reads(w, dim, in, w.count(dim, in))) return kArguments;
    if ((taps *= w.kernel[dim]) > std::numeric_limits<int32_t>::max()) return kArguments;
  }
  return nullptr;
}

const char* read_adaptive(const Tensor& x, int64_t rank, at::IntArrayRef output_size, Windows& w) {
  if (!poolable(x, rank)) return kShape;
  w.rank = rank;
  w.mode = Windows::kAdaptive;
  return spread(output_size, rank, 1, w.kernel) ? nullptr : kArguments;
}

}  // namespace fastnn::ops
