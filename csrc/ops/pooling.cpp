// Windows, sizes and layouts of pooling. The ops stand in pooling_max.cpp and pooling_avg.cpp.
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

// Where torch looks for a memory format: a length is a picture of height 1.
Tensor as_image(const Tensor& x, const Windows& w) {
  return w.rank == 1 ? x.unsqueeze(-2) : x;
}

at::MemoryFormat format_of(const Windows& w, bool channels_last) {
  if (!channels_last) return at::MemoryFormat::Contiguous;
  return w.rank == 3 ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::ChannelsLast;
}

}  // namespace

Windows Windows::from(at::IntArrayRef list) {
  TORCH_CHECK(list.size() == kLength, "fastnn pooling: the windows are a list of ", kLength,
              " numbers, not of ", list.size());
  Windows w;
  std::copy(list.begin(), list.end(), &w.rank);
  TORCH_CHECK(w.rank >= 1 && w.rank <= 3, "fastnn pooling: rank must be 1, 2 or 3");
  return w;
}

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

PoolShape pool_shape(at::IntArrayRef input_size, const Windows& w, bool channels_last) {
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

bool keeps_channels_last(const Tensor& x, const Windows& w, bool is_max) {
  if (x.dim() != w.rank + 2) return false;
  if (w.rank == 3 && (!is_max || w.adaptive())) return false;
  if (w.rank == 1 && x.is_contiguous()) return false;  // the common case, without making a view
  return as_image(x, w).suggest_memory_format() != at::MemoryFormat::Contiguous;
}

Tensor empty_pooled(c10::SymIntArrayRef size, const at::TensorOptions& options, const Windows& w,
                    bool channels_last) {
  if (w.rank != 1 || !channels_last) {
    return at::empty_symint(size, options.memory_format(format_of(w, channels_last)));
  }
  std::vector<c10::SymInt> image(size.begin(), size.end());
  image.insert(image.end() - 1, 1);
  return at::empty_symint(image, options.memory_format(at::MemoryFormat::ChannelsLast)).squeeze(-2);
}

Tensor in_layout(const Tensor& t, const Windows& w, bool channels_last) {
  if (!channels_last) return t.contiguous();
  return as_image(t, w).contiguous(format_of(w, true));
}

}  // namespace fastnn::ops
