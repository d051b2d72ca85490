// PReLU and GLU: front ops, private ops, autograd.
#include "ops/activation_channels.h"

#include "fastnn/activation.h"
#include "ops/bind.h"
#include "ops/front.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

// --- PReLU -----------------------------------------------------------------------------------------------

Tensor prelu_cpu(const Tensor& x, const Tensor& w) {
  Tensor y = fresh_like(x);
  const Tensor dense = with_layout_of(x, y), weight = w.contiguous();
  const ChannelView v = channel_view(y, w);
  cpu::prelu_forward({.dtype = dtype_of(x),
                      .outer = v.outer,
                      .channels = v.channels,
                      .inner = v.inner,
                      .x = dense.const_data_ptr(),
                      .w = weight.const_data_ptr(),
                      .y = y.data_ptr()});
  return y;
}

std::tuple<Tensor, Tensor> prelu_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& w) {
  check_like(dy, x, "dy");
  Tensor dx = fresh_like(x), dw = at::empty(w.sizes(), w.options());
  const Tensor dense_dy = with_layout_of(dy, dx), dense_x = with_layout_of(x, dx), weight = w.contiguous();
  const ChannelView v = channel_view(dx, w);
  cpu::prelu_backward({.dtype = dtype_of(x),
                       .outer = v.outer,
                       .channels = v.channels,
                       .inner = v.inner,
                       .dy = dense_dy.const_data_ptr(),
                       .x = dense_x.const_data_ptr(),
                       .w = weight.const_data_ptr(),
                       .dx = dx.data_ptr(),
                       .dw = dw.data_ptr()});
  return {dx, dw};
}

Tensor prelu_meta(const Tensor& x, const Tensor&) {
  return at::empty_like(x);
}
std::tuple<Tensor, Tensor> prelu_backward_meta(const Tensor&, const Tensor& x, const Tensor& w) {
  return {at::empty_like(x), at::empty_symint(w.sym_sizes(), w.options())};
}

Tensor call_prelu(const Tensor& x, const Tensor& w) {
  static const auto op = handle<Tensor(const Tensor&, const Tensor&)>("fastnn::_prelu");
  return op.call(x, w);
}
std::tuple<Tensor, Tensor> call_prelu_backward(const Tensor& dy, const Tensor& x, const Tensor& w) {
  static const auto op = handle<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&)>(
      "fastnn::_prelu_backward");
  return op.call(dy, x, w);
}

struct PreluGradient {
  static constexpr const char* kName = "PreluBackward";
  static constexpr int kInputs = 2, kSaved = 2;
  using Arguments = std::tuple<>;
  static variable_list backward(const variable_list& dy, const Saved<2>& saved, const Wanted<2>&) {
    auto [dx, dw] = call_prelu_backward(dy[0], saved[0], saved[1]);
    return {dx, dw};
  }
};

Tensor prelu_autograd(const Tensor& x, const Tensor& w) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_prelu(x, w);
  };
  if (!records(x, w)) return run();
  const auto node = make_node<PreluGradient>({}, x, w);
  const Tensor y = run();
  node->output(y).keep(0, x).keep(1, w);
  return y;
}

std::tuple<Tensor, Tensor> prelu_backward_autograd(const Tensor& dy, const Tensor& x, const Tensor& w) {
  if (records(dy, x, w)) {
    // The weight against x: its channels are dimension 1.
    std::vector<c10::SymInt> shape(std::max<int64_t>(x.dim(), 1), 1);
    if (w.sym_numel() != 1) shape[1] = w.sym_numel();
    const Tensor positive = x > 0, zero = at::zeros_like(dy), weight = w.reshape_symint(shape);
    const Tensor dx = at::where(positive, dy, dy * weight);
    return {dx.view_as(x),
            at::where(positive, zero, dy * x).sum_to_size_symint(shape).reshape_symint(w.sym_sizes())};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_prelu_backward(dy, x, w);
}

// --- GLU -------------------------------------------------------------------------------------------------

Tensor glu_cpu(const Tensor& x, int64_t dim) {
  const auto order = memory_order(x);
  const Halves h = halves(x, order, dim);
  at::DimVector shape(h.x.sizes());
  shape[h.dim] /= 2;
  const Tensor y = at::empty(shape, x.options());
  cpu::glu_forward(
      {.dtype = dtype_of(x), .outer = h.outer, .half = h.half, .x = h.x.const_data_ptr(), .y = y.data_ptr()});
  return unpermute(y, order);
}

Tensor glu_backward_cpu(const Tensor& dy, const Tensor& x, int64_t dim) {
  at::DimVector half(x.sizes());
  half.at(dim) /= 2;
  check_sizes(dy, half, x, "dy");
  const auto order = memory_order(x);
  const Halves h = halves(x, order, dim);
  const Tensor dense_dy = dy.permute(order).contiguous(), dx = at::empty(h.x.sizes(), x.options());
  cpu::glu_backward({.dtype = dtype_of(x),
                     .outer = h.outer,
                     .half = h.half,
                     .dy = dense_dy.const_data_ptr(),
                     .x = h.x.const_data_ptr(),
                     .dx = dx.data_ptr()});
  return unpermute(dx, order);
}

Tensor glu_meta(const Tensor& x, int64_t dim) {
  // The strides that glu_cpu gives: those of a contiguous tensor in x's order of dimensions.
  const auto order = memory_order(x);
  auto shape = x.permute(order).sym_sizes().vec();
  auto& length = shape[std::find(order.begin(), order.end(), dim) - order.begin()];
  length = length / 2;
  return unpermute(at::empty_symint(shape, x.options()), order);
}
Tensor glu_backward_meta(const Tensor&, const Tensor& x, int64_t) {
  const auto order = memory_order(x);
  return unpermute(at::empty_symint(x.permute(order).sym_sizes(), x.options()), order);
}

Tensor call_glu(const Tensor& x, int64_t dim) {
  static const auto op = handle<Tensor(const Tensor&, int64_t)>("fastnn::_glu");
  return op.call(x, dim);
}
Tensor call_glu_backward(const Tensor& dy, const Tensor& x, int64_t dim) {
  static const auto op = handle<Tensor(const Tensor&, const Tensor&, int64_t)>("fastnn::_glu_backward");
  return op.call(dy, x, dim);
}

struct GluGradient {
  static constexpr const char* kName = "GluBackward";
  static constexpr int kInputs = 1, kSaved = 1;
  using Arguments = std::tuple<int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<1>& saved, const Wanted<1>&,
                                int64_t dim) {
    return {call_glu_backward(dy[0], saved[0], dim)};
  }
};

Tensor glu_autograd(const Tensor& x, int64_t dim) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_glu(x, dim);
  };
  if (!records(x)) return run();
  const auto node = make_node<GluGradient>({dim}, x);
  const Tensor y = run();
  node->output(y).keep(0, x);
  return y;
}

Tensor glu_backward_autograd(const Tensor& dy, const Tensor& x, int64_t dim) {
  if (records(dy, x)) {
    const auto parts = x.chunk(2, dim);
    const Tensor s = at::sigmoid(parts[1]), du = dy * s;
    return at::cat({du, du * parts[0] * (1 - s)}, dim);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_glu_backward(dy, x, dim);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_prelu(Tensor x, Tensor w) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("_prelu_backward(Tensor dy, Tensor x, Tensor w) -> (Tensor, Tensor)", {at::Tag::pt2_compliant_tag});
  m.def("_glu(Tensor x, int dim) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("_glu_backward(Tensor dy, Tensor x, int dim) -> Tensor", {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_prelu", prelu_cpu);
  m.impl("_prelu_backward", prelu_backward_cpu);
  m.impl("_glu", glu_cpu);
  m.impl("_glu_backward", glu_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_prelu", prelu_meta);
  m.impl("_prelu_backward", prelu_backward_meta);
  m.impl("_glu", glu_meta);
  m.impl("_glu_backward", glu_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_prelu", prelu_autograd);
  m.impl("_prelu_backward", prelu_backward_autograd);
  m.impl("_glu", glu_autograd);
  m.impl("_glu_backward", glu_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

const Op prelu_op("prelu", "_prelu", kFloating, /*autocast=*/true);
const Op glu_op("glu", "_glu", kFloating);

const char* why_not_prelu(const Tensor& x, const Tensor& w) {
  if (const char* reason = why_not(prelu_op, x, w)) return reason;
  const bool one = w.dim() <= 1 && w.numel() == 1;
  return one || (w.dim() == 1 && x.dim() >= 2 && x.size(1) == w.numel()) ? nullptr
                                                                         : "weight does not fit the channels";
}

Tensor prelu(const Tensor& input, const Tensor& weight) {
  return front(
      prelu_op, why_not_prelu(input, weight), [&] { return prelu_autograd(input, weight); },
      [&] { return at::prelu(input, weight); });
}

const char* why_not_glu(const Tensor& x, int64_t dim) {
  if (const char* reason = why_not(glu_op, x)) return reason;
  if (dim < -x.dim() || dim >= x.dim()) return "dim is out of range";
  return x.size(dim) % 2 == 0 ? nullptr : "the dimension has no two halves";
}

Tensor glu(const Tensor& input, int64_t dim) {
  return front(
      glu_op, why_not_glu(input, dim), [&] { return glu_autograd(input, dim < 0 ? dim + input.dim() : dim); },
      [&] { return at::glu(input, dim); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("prelu(Tensor input, Tensor weight) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.impl("prelu", c10::DispatchKey::CompositeImplicitAutograd, prelu);
  m.def("glu(Tensor input, int dim=-1) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.impl("glu", c10::DispatchKey::CompositeImplicitAutograd, glu);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("prelu", prelu);
  m.impl("glu", glu);
}

FASTNN_BIND(activation_channels, m) {
  bind_front<prelu>(m, "prelu", {"input", "weight"});
  bind_front<glu>(m, "glu", {"input", "dim"});
}

}  // namespace
}  // namespace fastnn::ops
