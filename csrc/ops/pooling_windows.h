// Windows, sizes and layouts of pooling, for the CPU and CUDA ops. No Python here: libfastnn_cuda.so is built
// from this header too.
#pragma once
#include "fastnn/pooling.h"
#include "ops/tensors.h"

namespace fastnn::ops {

// The windows of a call as one list of integers, so that an op's schema and the autograd node carry them
// whole: rank, mode, then kernel, stride, padding and dilation for D, H and W. Adaptive: the output size
// instead of the kernel. Missing leading dimensions are 1 (padding 0).
struct Windows {
  enum Mode : int64_t { kFloor, kCeil, kAdaptive };
  static constexpr int64_t kLength = 14;
  int64_t rank = 0, mode = kFloor;
  int64_t kernel[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, padding[3] = {0, 0, 0}, dilation[3] = {1, 1, 1};

  static Windows from(at::IntArrayRef list) {
    TORCH_CHECK(list.size() == kLength, "fastnn pooling: the windows are a list of ", kLength,
                " numbers, not of ", list.size());
    Windows w;
    std::copy(list.begin(), list.end(), &w.rank);
    TORCH_CHECK(w.rank >= 1 && w.rank <= 3, "fastnn pooling: rank must be 1, 2 or 3");
    return w;
  }
  at::IntArrayRef list() const { return {&rank, kLength}; }
  bool adaptive() const { return mode == kAdaptive; }

  // Number of windows along D, H or W over `in` elements.
  template <class Int>
  Int count(int dim, const Int& in) const {
    if (adaptive()) return kernel[dim];
    const Int span = in + 2 * padding[dim] - (kernel[dim] - 1) * dilation[dim] - 1;
    if (mode == kFloor) return span / stride[dim] + 1;
    // The last window must start inside the input or the padding before it.
    const Int count = (span + stride[dim] - 1) / stride[dim] + 1;
    return (count - 1) * stride[dim] >= in + padding[dim] ? count - 1 : count;
  }

  // x: [N, C, ...] or [C, ...], rank numbers behind the channels.
  template <class Int>
  std::vector<Int> output_size(c10::ArrayRef<Int> x) const {
    std::vector<Int> out(x.begin(), x.end());
    for (int64_t i = 0; i < rank; ++i) {
      Int& size = out[out.size() - rank + i];
      size = count(static_cast<int>(3 - rank + i), size);
    }
    return out;
  }
};
static_assert(sizeof(Windows) == Windows::kLength * sizeof(int64_t), "list() reads the struct as one array");

inline PoolShape pool_shape(at::IntArrayRef input_size, const Windows& w, bool channels_last) {
  PoolShape s;
  const int64_t dims = static_cast<int64_t>(input_size.size());
  TORCH_CHECK(dims == w.rank + 1 || dims == w.rank + 2, "fastnn pooling: input must have ", w.rank + 1,
              " or ", w.rank + 2, " dimensions, not ", dims);
  s.n = dims == w.rank + 2 ? input_size[0] : 1;
  s.c = input_size[dims - w.rank - 1];
  s.adaptive = w.adaptive();
  s.channels_last = channels_last;
  for (int dim = 0; dim < 3; ++dim) {
    if (dim >= 3 - w.rank) s.in[dim] = input_size[dims - 3 + dim];
    s.out[dim] = w.count(dim, s.in[dim]);
    s.kernel[dim] = s.adaptive ? adaptive_kernel(s.in[dim], s.out[dim]) : w.kernel[dim];
    s.stride[dim] = w.stride[dim];
    s.padding[dim] = w.padding[dim];
    s.dilation[dim] = w.dilation[dim];
  }
  return s;
}

inline at::ScalarType code_type(const PoolShape& s) {
  return pool_codes_are_bytes(s) ? at::kByte : at::kInt;
}

// Where torch looks for a memory format: a length is a picture of height 1.
inline Tensor as_image(const Tensor& x, const Windows& w) {
  return w.rank == 1 ? x.unsqueeze(-2) : x;
}

inline at::MemoryFormat format_of(const Windows& w, bool channels_last) {
  if (!channels_last) return at::MemoryFormat::Contiguous;
  return w.rank == 3 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
}

// Whether torch gives a channels_last result for x. Averages and adaptive windows in 3-D never are.
inline bool keeps_channels_last(const Tensor& x, const Windows& w, bool is_max) {
  if (x.dim() != w.rank + 2) return false;
  if (w.rank == 3 && (!is_max || w.adaptive())) return false;
  if (w.rank == 1 && x.is_contiguous()) return false;  // the common case, without making a view
  return as_image(x, w).suggest_memory_format() != at::MemoryFormat::Contiguous;
}

// A tensor in the layout of pooling: contiguous or channels_last, where a length L is treated as 1 x L.
inline Tensor empty_pooled(c10::SymIntArrayRef size, const at::TensorOptions& options, const Windows& w,
                           bool channels_last) {
  if (w.rank != 1 || !channels_last) {
    return at::empty_symint(size, options.memory_format(format_of(w, channels_last)));
  }
  std::vector<c10::SymInt> image(size.begin(), size.end());
  image.insert(image.end() - 1, 1);
  return at::empty_symint(image, options.memory_format(at::MemoryFormat::ChannelsLast)).squeeze(-2);
}

inline Tensor in_layout(const Tensor& t, const Windows& w, bool channels_last) {
  if (!channels_last) return t.contiguous();
  return as_image(t, w).contiguous(format_of(w, true));
}

}  // namespace fastnn::ops
