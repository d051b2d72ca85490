// The CUDA kernels of fastnn::_max_pool, _max_pool_indices, _avg_pool and their gradients.
#include "cuda/pooling.h"

#include "ops/cuda/device.h"
#include "ops/pooling_windows.h"

namespace fastnn::ops {
namespace {

using c10::fromIntArrayRefUnchecked;

// y and codes: [N, C, OD, OH, OW] (leading dimensions as x has them); codes is empty unless asked for.
std::tuple<Tensor, Tensor> max_pool_cuda(const Tensor& x, at::IntArrayRef window, bool with_codes) {
  const DeviceGuard guard(x.device());
  const Windows w = Windows::from(window);
  const bool channels_last = keeps_channels_last(x, w, true);
  const PoolShape s = pool_shape(x.sizes(), w, channels_last);
  const auto size = w.output_size(x.sizes());
  const Tensor dense = in_layout(x, w, channels_last);
  Tensor y = empty_pooled(fromIntArrayRefUnchecked(size), x.options(), w, channels_last);
  const auto of_codes = x.options().dtype(code_type(s));
  Tensor codes = with_codes ? empty_pooled(fromIntArrayRefUnchecked(size), of_codes, w, channels_last)
                            : at::empty({0}, x.options().dtype(at::kByte));
  cuda::max_pool_forward({.dtype = dtype_of(x),
                          .shape = s,
                          .x = dense.const_data_ptr(),
                          .y = y.data_ptr(),
                          .codes = with_codes ? codes.data_ptr() : nullptr},
                         current_stream());
  return {y, codes};
}

Tensor max_pool_backward_cuda(const Tensor& dy, const Tensor& codes, at::IntArrayRef input_size,
                              bool channels_last, at::IntArrayRef window) {
  const DeviceGuard guard(dy.device());
  const Windows w = Windows::from(window);
  const PoolShape s = pool_shape(input_size, w, channels_last);
  check_sizes(dy, w.output_size(input_size), dy, "dy");
  TORCH_CHECK(
      codes.sizes() == dy.sizes() && codes.scalar_type() == code_type(s) && codes.device() == dy.device(),
      "fastnn: codes of ", codes.sizes(), " and ", codes.scalar_type(), " for windows of ", s.taps());
  const Tensor dense = in_layout(dy, w, channels_last), dense_codes = in_layout(codes, w, channels_last);
  Tensor dx = empty_pooled(fromIntArrayRefUnchecked(input_size), dy.options(), w, channels_last);
  cuda::max_pool_backward({.dtype = dtype_of(dy),
                           .shape = s,
                           .dy = dense.const_data_ptr(),
                           .codes = dense_codes.const_data_ptr(),
                           .dx = dx.data_ptr()},
                          current_stream());
  return dx;
}

Tensor max_pool_indices_cuda(const Tensor& codes, at::IntArrayRef input_size, at::IntArrayRef window) {
  const DeviceGuard guard(codes.device());
  const Windows w = Windows::from(window);
  check_sizes(codes, w.output_size(input_size), codes, "codes");
  const bool channels_last = keeps_channels_last(codes, w, true);
  const Tensor dense = in_layout(codes, w, channels_last);
  Tensor indices = empty_pooled(codes.sym_sizes(), codes.options().dtype(at::kLong), w, channels_last);
  cuda::max_pool_indices({.shape = pool_shape(input_size, w, channels_last),
                          .codes = dense.const_data_ptr(),
                          .indices = indices.data_ptr<int64_t>()},
                         current_stream());
  return indices;
}

// divisor 0: the number of elements in the window.
Tensor avg_pool_cuda(const Tensor& x, at::IntArrayRef window, bool count_include_pad, int64_t divisor) {
  const DeviceGuard guard(x.device());
  const Windows w = Windows::from(window);
  const bool channels_last = keeps_channels_last(x, w, false);
  const auto size = w.output_size(x.sizes());
  const Tensor dense = in_layout(x, w, channels_last);
  Tensor y = empty_pooled(fromIntArrayRefUnchecked(size), x.options(), w, channels_last);
  cuda::avg_pool_forward({.dtype = dtype_of(x),
                          .shape = pool_shape(x.sizes(), w, channels_last),
                          .count_include_pad = count_include_pad,
                          .divisor = divisor,
                          .x = dense.const_data_ptr(),
                          .y = y.data_ptr()},
                         current_stream());
  return y;
}

Tensor avg_pool_backward_cuda(const Tensor& dy, at::IntArrayRef input_size, bool channels_last,
                              at::IntArrayRef window, bool count_include_pad, int64_t divisor) {
  const DeviceGuard guard(dy.device());
  const Windows w = Windows::from(window);
  check_sizes(dy, w.output_size(input_size), dy, "dy");
  const Tensor dense = in_layout(dy, w, channels_last);
  Tensor dx = empty_pooled(fromIntArrayRefUnchecked(input_size), dy.options(), w, channels_last);
  cuda::avg_pool_backward({.dtype = dtype_of(dy),
                           .shape = pool_shape(input_size, w, channels_last),
                           .count_include_pad = count_include_pad,
                           .divisor = divisor,
                           .dy = dense.const_data_ptr(),
                           .dx = dx.data_ptr()},
                          current_stream());
  return dx;
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_max_pool", max_pool_cuda);
  m.impl("_max_pool_backward", max_pool_backward_cuda);
  m.impl("_max_pool_indices", max_pool_indices_cuda);
  m.impl("_avg_pool", avg_pool_cuda);
  m.impl("_avg_pool_backward", avg_pool_backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
