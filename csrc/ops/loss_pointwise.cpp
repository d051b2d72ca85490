// Squared error and binary cross-entropy of logits: front ops, one private op with a kind, autograd.
#include "ops/bind.h"
#include "ops/front.h"
#include "ops/loss.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

constexpr int64_t kSquared = static_cast<int64_t>(PointwiseLoss::kSquared);
constexpr int64_t kBinaryLogits = static_cast<int64_t>(PointwiseLoss::kBinaryLogits);

Tensor pointwise_loss_cpu(const Tensor& input, const Tensor& target, int64_t kind, int64_t reduction) {
  const Operands t(input, target);
  PointwiseLossParams p{.dtype = dtype_of(input),
                        .kind = static_cast<PointwiseLoss>(kind),
                        .count = input.numel(),
                        .x = t.x.const_data_ptr(),
                        .target = t.target.const_data_ptr()};
  if (reduction == at::Reduction::None) {
    Tensor y = fresh_like(t.x);
    p.y = y.data_ptr();
    cpu::pointwise_loss_forward(p);
    return y;
  }
  const double sum = cpu::pointwise_loss_forward(p);
  const double divisor = reduction == at::Reduction::Mean ? static_cast<double>(p.count) : 1;
  return at::empty({}, input.options()).fill_(sum / divisor);
}

Tensor pointwise_loss_backward_cpu(const Tensor& dy, const Tensor& input, const Tensor& target, int64_t kind,
                                   int64_t reduction) {
  const Operands t(input, target);
  const bool each = reduction == at::Reduction::None;
  TORCH_CHECK(each ? dy.sizes() == input.sizes() : dy.numel() == 1,
              "fastnn::_pointwise_loss_backward: dy of ", dy.sizes());
  const Tensor slopes = each ? with_layout_of(dy, t.x) : Tensor();
  Tensor dx = fresh_like(t.x);
  cpu::pointwise_loss_backward({.dtype = dtype_of(input),
                                .kind = static_cast<PointwiseLoss>(kind),
                                .count = input.numel(),
                                .dy = each ? slopes.const_data_ptr() : nullptr,
                                .slope = each ? 1 : dy.item<double>() * scale_of(reduction, input.numel()),
                                .x = t.x.const_data_ptr(),
                                .target = t.target.const_data_ptr(),
                                .dx = dx.data_ptr()});
  return dx;
}

Tensor shaped_like(const Tensor& x) {
  return x.is_non_overlapping_and_dense() ? at::empty_like(x) : at::empty_symint(x.sym_sizes(), x.options());
}
Tensor pointwise_loss_meta(const Tensor& input, const Tensor&, int64_t, int64_t reduction) {
  return reduction == at::Reduction::None ? shaped_like(input) : at::empty({}, input.options());
}
Tensor pointwise_loss_backward_meta(const Tensor&, const Tensor& input, const Tensor&, int64_t, int64_t) {
  return shaped_like(input);
}

// --- autograd --------------------------------------------------------------------------------------------

Tensor call_pointwise_loss(const Tensor& x, const Tensor& target, int64_t kind, int64_t reduction) {
  static const auto op = handle<decltype(pointwise_loss_cpu)>("fastnn::_pointwise_loss");
  return op.call(x, target, kind, reduction);
}
Tensor call_pointwise_loss_backward(const Tensor& dy, const Tensor& x, const Tensor& target, int64_t kind,
                                    int64_t reduction) {
  static const auto op = handle<decltype(pointwise_loss_backward_cpu)>("fastnn::_pointwise_loss_backward");
  return op.call(dy, x, target, kind, reduction);
}

struct PointwiseLossGradient {
  static constexpr const char* kName = "PointwiseLossBackward";
  static constexpr int kInputs = 1, kSaved = 2;
  using Arguments = std::tuple<int64_t, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<2>& saved, const Wanted<1>&,
                                int64_t kind, int64_t reduction) {
    return {call_pointwise_loss_backward(dy[0], saved[0], saved[1], kind, reduction)};
  }
};

Tensor pointwise_loss_autograd(const Tensor& x, const Tensor& target, int64_t kind, int64_t reduction) {
  TORCH_CHECK(!needs_grad(target), "fastnn::_pointwise_loss has no gradient of the target");
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_pointwise_loss(x, target, kind, reduction);
  };
  if (!records(x)) return run();
  const auto node = make_node<PointwiseLossGradient>({kind, reduction}, x);
  const Tensor y = run();
  node->output(y).keep(0, x).keep(1, target);
  return y;
}

Tensor pointwise_loss_backward_autograd(const Tensor& dy, const Tensor& x, const Tensor& target, int64_t kind,
                                        int64_t reduction) {
  if (records(dy, x, target)) {
    const Tensor slope = kind == kSquared ? 2 * (x - target) : x.sigmoid() - target;
    return reduction == at::Reduction::Mean ? slope * dy / x.sym_numel() : slope * dy;
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_pointwise_loss_backward(dy, x, target, kind, reduction);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_pointwise_loss(Tensor input, Tensor target, int kind, int reduction) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("_pointwise_loss_backward(Tensor dy, Tensor input, Tensor target, int kind, int reduction) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_pointwise_loss", pointwise_loss_cpu);
  m.impl("_pointwise_loss_backward", pointwise_loss_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_pointwise_loss", pointwise_loss_meta);
  m.impl("_pointwise_loss_backward", pointwise_loss_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_pointwise_loss", pointwise_loss_autograd);
  m.impl("_pointwise_loss_backward", pointwise_loss_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

const Op mse_loss_op("mse_loss", "_pointwise_loss", kFloating, /*autocast=*/true);
const Op bce_with_logits_op("binary_cross_entropy_with_logits", "_pointwise_loss", kFloating,
                            /*autocast=*/true);

const char* why_not_pointwise(const Op& op, const Tensor& input, const Tensor& target, int64_t reduction) {
  if (const char* reason = why_not(op, input, target)) return reason;
  if (input.sizes() != target.sizes()) return "a target of another shape than the input";
  if (needs_grad(target)) return "a gradient of the target";
  if (input.numel() == 0) return "an empty input";
  return reduction < at::Reduction::None || reduction > at::Reduction::Sum ? "an unknown reduction" : nullptr;
}

Tensor mse_loss(const Tensor& input, const Tensor& target, int64_t reduction) {
  return front(
      mse_loss_op, why_not_pointwise(mse_loss_op, input, target, reduction),
      [&] { return pointwise_loss_autograd(input, target, kSquared, reduction); },
      [&] { return at::mse_loss(input, target, reduction); });
}

Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target,
                                        const OptionalTensor& weight, const OptionalTensor& pos_weight,
                                        int64_t reduction) {
  const char* reason = why_not_pointwise(bce_with_logits_op, input, target, reduction);
  if (reason == nullptr && (or_undefined(weight).defined() || or_undefined(pos_weight).defined()))
    reason = "weights of elements or of positive targets";
  return front(
      bce_with_logits_op, reason,
      [&] { return pointwise_loss_autograd(input, target, kBinaryLogits, reduction); },
      [&] { return at::binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("mse_loss(Tensor input, Tensor target, int reduction) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.impl("mse_loss", c10::DispatchKey::CompositeImplicitAutograd, mse_loss);
  m.def(
      "binary_cross_entropy_with_logits(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, int "
      "reduction) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.impl("binary_cross_entropy_with_logits", c10::DispatchKey::CompositeImplicitAutograd,
         binary_cross_entropy_with_logits);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("mse_loss", mse_loss);
  m.impl("binary_cross_entropy_with_logits", binary_cross_entropy_with_logits);
}

FASTNN_BIND(loss_pointwise, m) {
  bind_front<mse_loss>(m, "mse_loss", {"input", "target", "reduction"});
  bind_front<binary_cross_entropy_with_logits>(m, "binary_cross_entropy_with_logits",
                                               {"input", "target", "weight", "pos_weight", "reduction"});
}

}  // namespace
}  // namespace fastnn::ops
