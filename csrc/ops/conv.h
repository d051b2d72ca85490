// What convolution's CPU and CUDA registrations share: all of a call but its kernels.
//
// An Engine runs them: run(params, like), with a tensor for its device, returns the algorithm's name,
// record(name) is told that of a forward call.
#pragma once
#include <array>

#include "fastnn/conv.h"
#include "ops/tensors.h"

namespace fastnn::ops {

using at::IntArrayRef;
using Tensors = std::tuple<Tensor, Tensor, Tensor>;

// --- shapes ----------------------------------------------------------------------------------------------

// `whole` is the side that the kernel slides over: the input, or the output of a transposed convolution.
inline ConvGeometry geometry(const Tensor& whole, const Tensor& w, const Tensor& slid, IntArrayRef stride,
                             IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                             at::MemoryFormat format) {
  ConvGeometry p;
  p.dtype = dtype_of(w);
  p.channels_last = format != at::MemoryFormat::Contiguous;
  p.n = whole.size(0);
  p.c = whole.size(1);
  p.k = slid.size(1);
  p.g = groups;
  const int64_t nd = w.dim() - 2;
  for (int64_t i = 0; i < nd; ++i) {
    const int64_t d = 3 - nd + i;
    p.in[d] = whole.size(2 + i);
    p.kernel[d] = w.size(2 + i);
    p.stride[d] = stride[i];
    p.padding[d] = padding[i];
    p.dilation[d] = dilation[i];
    p.out[d] = slid.size(2 + i);
  }
  return p;
}

template <class Int>
Int output_size(const Int& in, const Int& kernel, int64_t stride, int64_t padding, int64_t dilation,
                bool transposed, int64_t output_padding) {
  if (transposed) return (in - 1) * stride - 2 * padding + (kernel - 1) * dilation + 1 + output_padding;
  return (in + 2 * padding - (kernel - 1) * dilation - 1) / stride + 1;
}

inline std::vector<c10::SymInt> output_shape(const Tensor& x, const Tensor& w, IntArrayRef stride,
                                             IntArrayRef padding, IntArrayRef dilation, bool transposed,
                                             IntArrayRef output_padding, int64_t groups) {
  std::vector<c10::SymInt> shape{x.sym_size(0), transposed ? w.sym_size(1) * groups : w.sym_size(0)};
  for (int64_t i = 0; i < w.dim() - 2; ++i) {
    shape.push_back(output_size<c10::SymInt>(x.sym_size(2 + i), w.sym_size(2 + i), stride[i], padding[i],
                                             dilation[i], transposed, transposed ? output_padding[i] : 0));
  }
  return shape;
}

// The memory format that torch gives a convolution's output and dx. On the CPU it has two kernels in three
// dimensions, of which the one for small single images knows contiguous tensors only; cuDNN's are contiguous
// in double.
inline at::MemoryFormat format_of(const Tensor& x, const Tensor& w, int64_t groups) {
  const bool cuda = x.is_cuda(), is_double = w.scalar_type() == at::kDouble;
  const bool planes = w.dim() == 4 && !(cuda && is_double), volumes = w.dim() == 5 && !is_double;
  if ((!planes && !volumes) || x.sym_size(0).maybe_as_int() == 0) return at::MemoryFormat::Contiguous;
  const auto last = planes ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
  if (x.suggest_memory_format() != last && w.suggest_memory_format() != last)
    return at::MemoryFormat::Contiguous;
  const bool small = volumes && !cuda && groups == 1 && x.sym_size(0) == 1 &&
                     (w.sym_size(3) <= 3 || w.sym_size(4) <= 3) &&
                     x.sym_size(1) * x.sym_size(2) * x.sym_size(3) <= 20480;
  return small ? at::MemoryFormat::Contiguous : last;
}

// The result in that format. Tensor::contiguous(format) would leave strides as they are where sizes of one
// make them ambiguous.
inline Tensor in_format(const Tensor& t, at::MemoryFormat from, at::MemoryFormat to) {
  return from == to ? t : at::empty(t.sizes(), t.options(), to).copy_(t);
}

inline void check_arguments(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, bool transposed,
                            int64_t groups) {
  const int64_t channels = transposed ? w.size(0) : w.size(1) * groups;
  TORCH_CHECK(x.dim() == w.dim() && x.size(1) == channels && x.scalar_type() == w.scalar_type(),
              "fastnn: weight of sizes ", w.sizes(), " does not fit an input of sizes ", x.sizes());
  if (b && b->defined()) check_sizes(*b, {transposed ? w.size(1) * groups : w.size(0)}, x, "bias");
}

// --- calls ----------------------------------------------------------------------------------------------

// y: [N, K, ...] of x: [N, C, ...], w: [K, C / G, ...] or, transposed, [C, K / G, ...], b: [K].
template <class Engine>
Tensor conv_by(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, IntArrayRef stride,
               IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
               int64_t groups) {
  const auto shape = output_shape(x, w, stride, padding, dilation, transposed, output_padding, groups);
  check_arguments(x, w, b, transposed, groups);
  for (size_t i = 2; i < shape.size(); ++i)
    TORCH_CHECK(shape[i] > 0, "fastnn: weight is larger than the padded input");
  const at::MemoryFormat format = format_of(x, w, groups);
  Tensor y = at::empty(C10_AS_INTARRAYREF_SLOW(shape), x.options(), format);
  const Tensor dense_x = x.contiguous(format), dense_w = w.contiguous(format);
  const Tensor dense_b = b && b->defined() ? b->contiguous() : Tensor();
  const void* bias = dense_b.defined() ? dense_b.const_data_ptr() : nullptr;
  if (y.numel() > 0 && transposed) {
    Engine::record(Engine::run(
        ConvBackwardDataParams{geometry(y, w, x, stride, padding, dilation, groups, format),
                               dense_x.const_data_ptr(), dense_w.const_data_ptr(), bias, y.data_ptr()},
        x));
  } else if (y.numel() > 0) {
    Engine::record(
        Engine::run(ConvForwardParams{geometry(x, w, y, stride, padding, dilation, groups, format),
                                      dense_x.const_data_ptr(), dense_w.const_data_ptr(), bias, y.data_ptr()},
                    x));
  }
  return y;
}

template <class Engine>
Tensors conv_backward_by(const Tensor& dy, const Tensor& x, const Tensor& w, IntArrayRef stride,
                         IntArrayRef padding, IntArrayRef dilation, bool transposed,
                         IntArrayRef output_padding, int64_t groups, std::array<bool, 3> output_mask) {
  check_arguments(x, w, std::nullopt, transposed, groups);
  const auto shape = output_shape(x, w, stride, padding, dilation, transposed, output_padding, groups);
  check_sizes(dy, C10_AS_INTARRAYREF_SLOW(shape), x, "dy");
  const at::MemoryFormat format = format_of(x, w, groups);
  const Tensor dense_dy = dy.contiguous(format);
  const ConvGeometry p = transposed ? geometry(dy, w, x, stride, padding, dilation, groups, format)
                                    : geometry(x, w, dy, stride, padding, dilation, groups, format);
  const bool empty = dy.numel() == 0;
  Tensor dx, dw, db;
  if (output_mask[0]) {
    dx = at::empty(x.sizes(), x.options(), format);
    const Tensor dense_w = w.contiguous(format);
    if (!empty && transposed) {
      Engine::run(
          ConvForwardParams{p, dense_dy.const_data_ptr(), dense_w.const_data_ptr(), nullptr, dx.data_ptr()},
          x);
    } else if (!empty) {
      Engine::run(ConvBackwardDataParams{p, dense_dy.const_data_ptr(), dense_w.const_data_ptr(), nullptr,
                                         dx.data_ptr()},
                  x);
    }
  }
  if (output_mask[1]) {
    const at::MemoryFormat w_format = w.suggest_memory_format();
    dw = at::empty(w.sizes(), w.options(), empty ? w_format : format);
    const Tensor dense_x = x.contiguous(format);
    const void *slid = dense_dy.const_data_ptr(), *whole = dense_x.const_data_ptr();
    if (transposed) std::swap(slid, whole);
    if (empty) {
      dw.zero_();
    } else {
      Engine::run(ConvBackwardWeightParams{p, slid, whole, dw.data_ptr()}, x);
      dw = in_format(dw, format, w_format);
    }
  }
  if (output_mask[2]) {
    db = empty ? at::zeros({dy.size(1)}, dy.options()) : at::empty({dy.size(1)}, dy.options());
    if (!empty) {
      Engine::run(ConvBackwardBiasParams{.dtype = p.dtype,
                                         .n = dy.size(0),
                                         .channels = dy.size(1),
                                         .plane = dy.numel() / dy.size(0) / dy.size(1),
                                         .dy = dense_dy.const_data_ptr(),
                                         .db = db.data_ptr(),
                                         .channels_last = p.channels_last},
                  x);
    }
  }
  return {dx, dw, db};
}

}  // namespace fastnn::ops
