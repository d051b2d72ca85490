// Softmax, log-softmax and softmin: front ops, one private op with two flags, autograd.
#include "fastnn/softmax.h"

#include "ops/bind.h"
#include "ops/front.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

// Contiguous whatever the layout of x, as torch's.
Tensor softmax_cpu(const Tensor& x, int64_t dim, bool log, bool negate) {
  const Tensor dense = x.contiguous();
  Tensor y = at::empty(x.sizes(), x.options());
  const DimensionView v = dimension_view(y, dim);
  cpu::softmax_forward({.dtype = dtype_of(x),
                        .outer = v.outer,
                        .length = v.length,
                        .inner = v.inner,
                        .log = log,
                        .negate = negate,
                        .x = dense.const_data_ptr(),
                        .y = y.data_ptr()});
  return y;
}

Tensor softmax_backward_cpu(const Tensor& dy, const Tensor& y, int64_t dim, bool log, bool negate) {
  check_like(dy, y, "dy");
  const Tensor dense_dy = dy.contiguous(), dense_y = y.contiguous();
  Tensor dx = at::empty(y.sizes(), y.options());
  const DimensionView v = dimension_view(y, dim);
  cpu::softmax_backward({.dtype = dtype_of(y),
                         .outer = v.outer,
                         .length = v.length,
                         .inner = v.inner,
                         .log = log,
                         .negate = negate,
                         .dy = dense_dy.const_data_ptr(),
                         .y = dense_y.const_data_ptr(),
                         .dx = dx.data_ptr()});
  return dx;
}

Tensor softmax_meta(const Tensor& x, int64_t, bool, bool) {
  return at::empty_symint(x.sym_sizes(), x.options());
}
Tensor softmax_backward_meta(const Tensor&, const Tensor& y, int64_t, bool, bool) {
  return at::empty_symint(y.sym_sizes(), y.options());
}

Tensor call_softmax(const Tensor& x, int64_t dim, bool log, bool negate) {
  static const auto op = handle<Tensor(const Tensor&, int64_t, bool, bool)>("fastnn::_softmax");
  return op.call(x, dim, log, negate);
}
Tensor call_softmax_backward(const Tensor& dy, const Tensor& y, int64_t dim, bool log, bool negate) {
  static const auto op =
      handle<Tensor(const Tensor&, const Tensor&, int64_t, bool, bool)>("fastnn::_softmax_backward");
  return op.call(dy, y, dim, log, negate);
}

struct SoftmaxGradient {
  static constexpr const char* kName = "SoftmaxBackward";
  static constexpr int kInputs = 1, kSaved = 1;
  using Arguments = std::tuple<int64_t, bool, bool>;
  static variable_list backward(const variable_list& dy, const Saved<1>& saved, const Wanted<1>&, int64_t dim,
                                bool log, bool negate) {
    return {call_softmax_backward(dy[0], saved[0], dim, log, negate)};
  }
};

Tensor softmax_autograd(const Tensor& x, int64_t dim, bool log, bool negate) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_softmax(x, dim, log, negate);
  };
  if (!records(x)) return run();
  const auto node = make_node<SoftmaxGradient>({dim, log, negate}, x);
  const Tensor y = run();
  node->output(y).keep(0, y);
  return y;
}

Tensor softmax_backward_autograd(const Tensor& dy, const Tensor& y, int64_t dim, bool log, bool negate) {
  if (records(dy, y)) {
    const Tensor dx = log ? dy - y.exp() * dy.sum(dim, true) : y * (dy - (dy * y).sum(dim, true));
    return negate ? -dx : dx;
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_softmax_backward(dy, y, dim, log, negate);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_softmax(Tensor x, int dim, bool log, bool negate) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("_softmax_backward(Tensor dy, Tensor y, int dim, bool log, bool negate) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_softmax", softmax_cpu);
  m.impl("_softmax_backward", softmax_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_softmax", softmax_meta);
  m.impl("_softmax_backward", softmax_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_softmax", softmax_autograd);
  m.impl("_softmax_backward", softmax_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

// torch's autocast computes these in float32 on CUDA.
const Op softmax_op("softmax", "_softmax", kFloating, /*autocast=*/true);
const Op log_softmax_op("log_softmax", "_softmax", kFloating, /*autocast=*/true);
const Op softmin_op("softmin", "_softmax", kFloating, /*autocast=*/true);

template <class Torch>
Tensor over_dim(const Op& op, const Tensor& x, int64_t dim, bool log, bool negate, const Torch& torch) {
  const char* reason = why_not(op, x);
  const int64_t dims = std::max<int64_t>(x.dim(), 1);
  if (reason == nullptr && (dim < -dims || dim >= dims)) reason = "dim is out of range";
  return front(
      op, reason, [&] { return softmax_autograd(x, dim < 0 ? dim + dims : dim, log, negate); }, torch);
}

Tensor softmax(const Tensor& input, int64_t dim) {
  return over_dim(softmax_op, input, dim, false, false, [&] { return at::softmax(input, dim); });
}
Tensor log_softmax(const Tensor& input, int64_t dim) {
  return over_dim(log_softmax_op, input, dim, true, false, [&] { return at::log_softmax(input, dim); });
}
Tensor softmin(const Tensor& input, int64_t dim) {
  return over_dim(softmin_op, input, dim, false, true, [&] { return at::softmax(-input, dim); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("softmax(Tensor input, int dim) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.impl("softmax", c10::DispatchKey::CompositeImplicitAutograd, softmax);
  m.def("log_softmax(Tensor input, int dim) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.impl("log_softmax", c10::DispatchKey::CompositeImplicitAutograd, log_softmax);
  m.def("softmin(Tensor input, int dim) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.impl("softmin", c10::DispatchKey::CompositeImplicitAutograd, softmin);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("softmax", softmax);
  m.impl("log_softmax", log_softmax);
  m.impl("softmin", softmin);
}

FASTNN_BIND(softmax, m) {
  bind_front<softmax>(m, "softmax", {"input", "dim"});
  bind_front<log_softmax>(m, "log_softmax", {"input", "dim"});
  bind_front<softmin>(m, "softmin", {"input", "dim"});
}

}  // namespace
}  // namespace fastnn::ops
