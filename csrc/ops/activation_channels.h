// How PReLU and GLU see a tensor's memory, for the CPU and CUDA ops. No Python here: libfastnn_cuda.so is
// built from this header too.
#pragma once
#include <algorithm>
#include <numeric>

#include "ops/tensors.h"

namespace fastnn::ops {

// Where the channels lie in a dense tensor's memory: [outer, channels, inner], whatever the order of
// dimensions.
struct ChannelView {
  int64_t outer = 1, channels = 1, inner = 1;
};
inline ChannelView channel_view(const Tensor& dense, const Tensor& w) {
  TORCH_CHECK(w.scalar_type() == dense.scalar_type() &&
                  (w.numel() == 1 || (dense.dim() > 1 && w.numel() == dense.size(1))),
              "fastnn: weight must have one element or one for each channel, and the input's dtype");
  if (w.numel() == 1 || dense.numel() == 0)
    return {1, w.numel(), dense.numel() / std::max<int64_t>(1, w.numel())};
  const int64_t inner = dense.stride(1);
  return {dense.numel() / (w.numel() * inner), w.numel(), inner};
}

// The dimensions of t from the widest stride to the narrowest: t.permute() of it is contiguous when t is
// dense.
inline std::vector<int64_t> memory_order(const Tensor& t) {
  std::vector<int64_t> order(t.dim());
  std::iota(order.begin(), order.end(), 0);
  // An expanded tensor has no order of its own.
  if (std::count(t.strides().begin(), t.strides().end(), 0) > 0) return order;
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return t.stride(a) > t.stride(b); });
  return order;
}

// t, whose dimension i is number order[i] of the result.
inline Tensor unpermute(const Tensor& t, const std::vector<int64_t>& order) {
  std::vector<int64_t> inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[order[i]] = static_cast<int64_t>(i);
  return t.permute(inverse);
}

// x with its dimensions in memory order, and the split one among them.
struct Halves {
  Tensor x;
  int64_t dim, outer, half;
};
inline Halves halves(const Tensor& x, const std::vector<int64_t>& order, int64_t dim) {
  Tensor dense = x.permute(order).contiguous();
  const int64_t at = std::find(order.begin(), order.end(), dim) - order.begin();
  const int64_t outer = c10::multiply_integers(dense.sizes().slice(0, at));
  return {dense, at, outer, c10::multiply_integers(dense.sizes().slice(at)) / 2};
}

}  // namespace fastnn::ops
