// Negative log-likelihood: front op, private op, autograd.
#include "fastnn/loss_nll.h"

#include "ops/bind.h"
#include "ops/front.h"
#include "ops/loss_targets.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

using Pair = std::tuple<Tensor, Tensor>;

// The loss; what the mean is divided by, in double.
Pair nll_cpu(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
             int64_t ignored) {
  const DimensionView v = class_view(x);
  const Classes classes(x, target, weight, ignored);
  const Tensor dense = x.contiguous();
  Tensor loss = positions_like(x), normaliser = at::empty({}, x.options().dtype(at::kDouble));
  cpu::nll_forward({.dtype = dtype_of(x),
                    .N = v.outer,
                    .C = v.length,
                    .inner = v.inner,
                    .target = classes.view,
                    .x = dense.const_data_ptr(),
                    .loss = loss.data_ptr()});
  const double divisor =
      reduction == at::Reduction::Mean ? cpu::sum_of_weights(dtype_of(x), classes.view, loss.numel()) : 1;
  normaliser.fill_(divisor);
  if (reduction != at::Reduction::None) return {reduced_loss(loss, x, divisor), normaliser};
  return {loss.to(x.scalar_type()), normaliser};
}

// x gives sizes and dtype; its numbers are not read.
Tensor nll_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                        const Tensor& normaliser, int64_t reduction, int64_t ignored) {
  const DimensionView v = class_view(x);
  const Classes classes(x, target, weight, ignored);
  TORCH_CHECK(normaliser.numel() == 1, "fastnn: a normaliser of ", normaliser.sizes());
  const Tensor slopes = slopes_of(dy, x, reduction);
  Tensor dx = at::empty(x.sizes(), x.options());
  cpu::nll_backward({.dtype = dtype_of(x),
                     .N = v.outer,
                     .C = v.length,
                     .inner = v.inner,
                     .target = classes.view,
                     .dy = slopes.const_data_ptr(),
                     .dy_is_number = reduction != at::Reduction::None,
                     .scale = 1 / normaliser.item<double>(),
                     .dx = dx.data_ptr()});
  return dx;
}

Pair nll_meta(const Tensor& x, const Tensor& target, const OptionalTensor&, int64_t reduction, int64_t) {
  return {reduction == at::Reduction::None ? at::empty_symint(target.sym_sizes(), x.options())
                                           : at::empty({}, x.options()),
          at::empty({}, x.options().dtype(at::kDouble))};
}
Tensor nll_backward_meta(const Tensor&, const Tensor& x, const Tensor&, const OptionalTensor&, const Tensor&,
                         int64_t, int64_t) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

// --- autograd --------------------------------------------------------------------------------------------

Pair call_nll(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
              int64_t ignored) {
  static const auto op = handle<decltype(nll_cpu)>("fastnn::_nll_loss");
  return op.call(x, target, weight, reduction, ignored);
}
Tensor call_nll_backward(const Tensor& dy, const Tensor& x, const Tensor& target,
                         const OptionalTensor& weight, const Tensor& normaliser, int64_t reduction,
                         int64_t ignored) {
  static const auto op = handle<decltype(nll_backward_cpu)>("fastnn::_nll_loss_backward");
  return op.call(dy, x, target, weight, normaliser, reduction, ignored);
}

struct NllGradient {
  static constexpr const char* kName = "NllLossBackward";
  static constexpr int kInputs = 1, kSaved = 4;
  using Arguments = std::tuple<int64_t, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<4>& saved, const Wanted<1>&,
                                int64_t reduction, int64_t ignored) {
    const auto& [x, target, weight, normaliser] = saved;
    const OptionalTensor w = weight.defined() ? OptionalTensor(weight) : std::nullopt;
    return {call_nll_backward(dy[0], x, target, w, normaliser, reduction, ignored)};
  }
};

Pair nll_autograd(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                  int64_t ignored) {
  TORCH_CHECK(!needs_grad(weight), "fastnn::_nll_loss has no gradient of the class weights");
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_nll(x, target, weight, reduction, ignored);
  };
  if (!records(x)) return run();
  const auto node = make_node<NllGradient>({reduction, ignored}, x);
  auto [loss, normaliser] = run();
  node->output(loss).keep(0, x).keep(1, target).keep(2, or_undefined(weight)).keep(3, normaliser);
  return {loss, normaliser};
}

// For second derivatives: a scatter of dy, which does not depend on x.
Tensor nll_backward_autograd(const Tensor& dy, const Tensor& x, const Tensor& target,
                             const OptionalTensor& weight, const Tensor& normaliser, int64_t reduction,
                             int64_t ignored) {
  if (!records(dy)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_nll_backward(dy, x, target, weight, normaliser, reduction, ignored);
  }
  const int64_t dim = x.dim() == 1 ? 0 : 1;
  const Tensor counts = target != ignored, index = target.masked_fill(counts.logical_not(), 0);
  Tensor slope = counts.to(x.scalar_type()) * dy / normaliser.to(x.scalar_type());
  if (weight && weight->defined()) {
    slope = slope * weight->index_select(0, index.reshape({-1})).view_as(index).to(x.scalar_type());
  }
  return at::zeros_like(x.detach()).scatter(dim, index.unsqueeze(dim), -slope.unsqueeze(dim));
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_nll_loss(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> (Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_nll_loss_backward(Tensor dy, Tensor input, Tensor target, Tensor? weight, Tensor normaliser, int "
      "reduction, int ignore_index) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_nll_loss", nll_cpu);
  m.impl("_nll_loss_backward", nll_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_nll_loss", nll_meta);
  m.impl("_nll_loss_backward", nll_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_nll_loss", nll_autograd);
  m.impl("_nll_loss_backward", nll_backward_autograd);
}

// --- front op --------------------------------------------------------------------------------------------

const Op nll_loss_op("nll_loss", "_nll_loss", kFloating, /*autocast=*/true);

const char* why_not_nll(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                        int64_t reduction) {
  if (const char* reason = why_not(nll_loss_op, input, or_undefined(weight))) return reason;
  if (!is_plain(target)) return "targets that are not plain and dense";
  if (const char* reason = why_not_classes(input, weight, reduction)) return reason;
  return why_not_indices(input, target);
}

Tensor nll_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                int64_t ignore_index) {
  return front(
      nll_loss_op, why_not_nll(input, target, weight, reduction),
      [&] { return std::get<0>(nll_autograd(input, target, weight, reduction, ignore_index)); },
      [&] { return at::nll_loss_nd(input, target, weight, reduction, ignore_index); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("nll_loss(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.impl("nll_loss", c10::DispatchKey::CompositeImplicitAutograd, nll_loss);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("nll_loss", nll_loss);
}

FASTNN_BIND(loss_nll, m) {
  bind_front<nll_loss>(m, "nll_loss", {"input", "target", "weight", "reduction", "ignore_index"});
}

}  // namespace
}  // namespace fastnn::ops
