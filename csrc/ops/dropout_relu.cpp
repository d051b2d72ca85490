// relu and dropout in a row, as the layers of a Transformer have them: one pass in each direction where each
// of the two had its own, and one tensor kept, which the next layer keeps anyway. The masks are those of
// dropout.cpp.
#include "fastnn/dropout.h"
#include "ops/bind.h"
#include "ops/front.h"
#include "ops/node.h"
#include "ops/random.h"

namespace fastnn::ops {
namespace {

Tensor relu_dropout_cpu(const Tensor& x, double p, int64_t seed, int64_t offset) {
  TORCH_CHECK(p >= 0 && p < 1, "fastnn::_relu_dropout: p must be in [0, 1), but is ", p);
  const Tensor dense = x.contiguous();
  Tensor y = fresh_like(dense);
  cpu::relu_dropout({.dtype = dtype_of(x),
                     .count = x.numel(),
                     .x = dense.const_data_ptr(),
                     .y = y.data_ptr(),
                     .p = p,
                     .seed = static_cast<uint64_t>(seed),
                     .offset = static_cast<uint64_t>(offset)});
  return y;
}
Tensor relu_dropout_backward_cpu(const Tensor& dy, const Tensor& y, double p) {
  check_like(dy, y, "dy");
  const Tensor slopes = dy.contiguous(), kept = y.contiguous();
  Tensor dx = fresh_like(kept);
  cpu::relu_dropout_backward({.dtype = dtype_of(y),
                              .count = y.numel(),
                              .dy = slopes.const_data_ptr(),
                              .y = kept.const_data_ptr(),
                              .dx = dx.data_ptr(),
                              .scale = 1 / (1 - p)});
  return dx;
}

Tensor relu_dropout_meta(const Tensor& x, double, int64_t, int64_t) {
  return at::empty_like(x, at::MemoryFormat::Contiguous);
}
Tensor relu_dropout_backward_meta(const Tensor&, const Tensor& y, double) {
  return at::empty_like(y, at::MemoryFormat::Contiguous);
}

Tensor call_relu_dropout(const Tensor& x, double p, int64_t seed, int64_t offset) {
  static const auto op = handle<decltype(relu_dropout_cpu)>("fastnn::_relu_dropout");
  return op.call(x, p, seed, offset);
}
Tensor call_relu_dropout_backward(const Tensor& dy, const Tensor& y, double p) {
  static const auto op = handle<decltype(relu_dropout_backward_cpu)>("fastnn::_relu_dropout_backward");
  return op.call(dy, y, p);
}

struct ReluDropoutGradient {
  static constexpr const char* kName = "ReluDropoutBackward";
  static constexpr int kInputs = 1, kSaved = 1;
  using Arguments = std::tuple<double>;
  static variable_list backward(const variable_list& dy, const Saved<1>& saved, const Wanted<1>&, double p) {
    return {call_relu_dropout_backward(dy[0], saved[0], p)};
  }
};

Tensor relu_dropout_autograd(const Tensor& x, double p, int64_t seed, int64_t offset) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_relu_dropout(x, p, seed, offset);
  };
  if (!records(x)) return run();
  const auto node = make_node<ReluDropoutGradient>({p}, x);
  const Tensor y = run();
  node->output(y).keep(0, y);
  return y;
}
// y does not depend on the gradient of x: the slope is constant where it exists.
Tensor relu_dropout_backward_autograd(const Tensor& dy, const Tensor& y, double p) {
  if (records(dy)) return dy.masked_fill(y <= 0, 0) * (1 / (1 - p));
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_relu_dropout_backward(dy, y, p);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_relu_dropout(Tensor x, float p, int seed, int offset) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("_relu_dropout_backward(Tensor dy, Tensor y, float p) -> Tensor", {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_relu_dropout", relu_dropout_cpu);
  m.impl("_relu_dropout_backward", relu_dropout_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_relu_dropout", relu_dropout_meta);
  m.impl("_relu_dropout_backward", relu_dropout_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_relu_dropout", relu_dropout_autograd);
  m.impl("_relu_dropout_backward", relu_dropout_backward_autograd);
}

// --- front op --------------------------------------------------------------------------------------------

const Op relu_dropout_op("relu_dropout", "_relu_dropout", kFloating);

Tensor relu_dropout(const Tensor& input, double p, bool train) {
  const char* reason = why_not(relu_dropout_op, input);
  if (reason == nullptr && !(p > 0 && p < 1 && train)) reason = "nothing is dropped, or everything";
  if (reason == nullptr && input.numel() == 0) reason = "an empty input";
  return front(
      relu_dropout_op, reason,
      [&] {
        const Stream stream = next_stream();
        return relu_dropout_autograd(input, p, stream.seed, stream.offset);
      },
      [&] { return at::dropout(at::relu(input), p, train); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("relu_dropout(Tensor input, float p, bool train) -> Tensor",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.impl("relu_dropout", c10::DispatchKey::CompositeImplicitAutograd, relu_dropout);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("relu_dropout", relu_dropout);
}

FASTNN_BIND(dropout_relu, m) {
  bind_front<relu_dropout>(m, "relu_dropout", {"input", "p", "train"});
}

}  // namespace
}  // namespace fastnn::ops
