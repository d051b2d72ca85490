// Squared error and binary cross-entropy of logits: front ops, private ops with a kind, autograd. With
// weights it is a private op of its own, which has no CUDA kernel; they share everything else.
#include "ops/bind.h"
#include "ops/front.h"
#include "ops/loss.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

constexpr int64_t kSquared = static_cast<int64_t>(PointwiseLoss::kSquared);
constexpr int64_t kBinaryLogits = static_cast<int64_t>(PointwiseLoss::kBinaryLogits);

bool defined(const OptionalTensor& t) {
  return t && t->defined();
}

// Factors as the kernels read them: x's elements in the order of memory, w's repeated among them.
struct Factors {
  Tensor held;
  ElementWeights view;

  // w broadcasts to x, which is dense.
  Factors(const OptionalTensor& w, const Tensor& x) {
    if (!defined(w)) return;
    TORCH_CHECK(at::is_expandable_to(w->sizes(), x.sizes()) && w->scalar_type() == x.scalar_type(),
                "fastnn::_weighted_loss: weights of ", w->sizes(), " and ", w->scalar_type());
    const Tensor wide = w->expand(x.sizes());
    std::vector<int64_t> order;  // the dimensions of more than one entry, outermost first
    for (int64_t d = 0; d < x.dim(); ++d)
      if (x.size(d) > 1) order.push_back(d);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return x.stride(a) > x.stride(b); });
    const auto varies = [&](int64_t d) { return wide.stride(d) != 0; };
    auto first = std::find_if(order.begin(), order.end(), varies);
    auto last = std::find_if(order.rbegin(), order.rend(), varies).base();
    const auto numbers = [&](auto begin, auto end) {
      int64_t n = 1;
      for (; begin < end; ++begin) n *= x.size(*begin);
      return n;
    };
    view.inner = numbers(last, order.end());
    if (first > last) first = last;  // one number for all
    if (!std::all_of(first, last, varies) || (view.inner > 1 && view.inner < kShortRun)) {
      first = order.begin(), last = order.end();
      view.inner = 1;
    }
    std::vector<int64_t> sizes, strides;
    for (auto d = first; d < last; ++d) sizes.push_back(x.size(*d)), strides.push_back(wide.stride(*d));
    held = wide.as_strided(sizes, strides, wide.storage_offset()).contiguous().view({-1});
    if (view.inner == 1 && held.numel() < kShortRun)
      held = held.repeat({std::max<int64_t>(1, std::min(kShortRun, x.numel()) / held.numel())});
    view.length = held.numel();
    view.data = held.const_data_ptr();
  }

 private:
  static constexpr int64_t kShortRun = 256;  // below, the ends of runs would cost more than reading factors
};

// What a mean is divided by: the count, or the sum of the weights where the loss is squared, as torch has it.
double divisor_of(const Tensor& x, const OptionalTensor& weight, int64_t kind, int64_t reduction) {
  if (reduction != at::Reduction::Mean) return 1;
  const double count = static_cast<double>(x.numel());
  if (kind != kSquared || !defined(weight)) return count;
  const Tensor w = weight->to(compute_type(x)).contiguous();
  const double sum = cpu::sum_of_losses(dtype_of(w), w.const_data_ptr(), w.numel());
  return sum * count / static_cast<double>(w.numel());
}

Tensor weighted_loss_cpu(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         const OptionalTensor& positive_weight, int64_t kind, int64_t reduction) {
  const Operands t(input, target);
  const Factors w(weight, t.x), positive(positive_weight, t.x);
  PointwiseLossParams p{.dtype = dtype_of(input),
                        .kind = static_cast<PointwiseLoss>(kind),
                        .count = input.numel(),
                        .x = t.x.const_data_ptr(),
                        .target = t.target.const_data_ptr(),
                        .weight = w.view,
                        .positive_weight = positive.view};
  if (reduction == at::Reduction::None) {
    Tensor y = fresh_like(t.x);
    p.y = y.data_ptr();
    cpu::pointwise_loss_forward(p);
    return y;
  }
  const double sum = cpu::pointwise_loss_forward(p);
  return at::empty({}, input.options()).fill_(sum / divisor_of(input, weight, kind, reduction));
}

Tensor weighted_loss_backward_cpu(const Tensor& dy, const Tensor& input, const Tensor& target,
                                  const OptionalTensor& weight, const OptionalTensor& positive_weight,
                                  int64_t kind, int64_t reduction) {
  const Operands t(input, target);
  const Factors w(weight, t.x), positive(positive_weight, t.x);
  const bool each = reduction == at::Reduction::None;
  TORCH_CHECK(each ? dy.sizes() == input.sizes() : dy.numel() == 1,
              "fastnn::_pointwise_loss_backward: dy of ", dy.sizes());
  const Tensor slopes = each ? with_layout_of(dy, t.x) : Tensor();
  Tensor dx = fresh_like(t.x);
  cpu::pointwise_loss_backward(
      {.dtype = dtype_of(input),
       .kind = static_cast<PointwiseLoss>(kind),
       .count = input.numel(),
       .dy = each ? slopes.const_data_ptr() : nullptr,
       .slope = each ? 1 : dy.item<double>() / divisor_of(input, weight, kind, reduction),
       .x = t.x.const_data_ptr(),
       .target = t.target.const_data_ptr(),
       .dx = dx.data_ptr(),
       .weight = w.view,
       .positive_weight = positive.view});
  return dx;
}

// The ops without weights.
template <auto weighted>
Tensor pointwise_loss(const Tensor& x, const Tensor& target, int64_t kind, int64_t reduction) {
  return weighted(x, target, std::nullopt, std::nullopt, kind, reduction);
}
template <auto weighted>
Tensor pointwise_loss_backward(const Tensor& dy, const Tensor& x, const Tensor& target, int64_t kind,
                               int64_t reduction) {
  return weighted(dy, x, target, std::nullopt, std::nullopt, kind, reduction);
}

Tensor shaped_like(const Tensor& x) {
  return x.is_non_overlapping_and_dense() ? at::empty_like(x) : at::empty_symint(x.sym_sizes(), x.options());
}
Tensor weighted_loss_meta(const Tensor& input, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                          int64_t, int64_t reduction) {
  return reduction == at::Reduction::None ? shaped_like(input) : at::empty({}, input.options());
}
Tensor weighted_loss_backward_meta(const Tensor&, const Tensor& input, const Tensor&, const OptionalTensor&,
                                   const OptionalTensor&, int64_t, int64_t) {
  return shaped_like(input);
}

// --- autograd --------------------------------------------------------------------------------------------

Tensor call_loss(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                 const OptionalTensor& positive_weight, int64_t kind, int64_t reduction) {
  static const auto plain = handle<decltype(pointwise_loss<weighted_loss_cpu>)>("fastnn::_pointwise_loss");
  static const auto weighted = handle<decltype(weighted_loss_cpu)>("fastnn::_weighted_loss");
  return defined(weight) || defined(positive_weight)
             ? weighted.call(x, target, weight, positive_weight, kind, reduction)
             : plain.call(x, target, kind, reduction);
}
Tensor call_loss_backward(const Tensor& dy, const Tensor& x, const Tensor& target,
                          const OptionalTensor& weight, const OptionalTensor& positive_weight, int64_t kind,
                          int64_t reduction) {
  static const auto plain = handle<decltype(pointwise_loss_backward<weighted_loss_backward_cpu>)>(
      "fastnn::_pointwise_loss_backward");
  static const auto weighted =
      handle<decltype(weighted_loss_backward_cpu)>("fastnn::_weighted_loss_backward");
  return defined(weight) || defined(positive_weight)
             ? weighted.call(dy, x, target, weight, positive_weight, kind, reduction)
             : plain.call(dy, x, target, kind, reduction);
}

OptionalTensor if_defined(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

struct PointwiseLossGradient {
  static constexpr const char* kName = "PointwiseLossBackward";
  static constexpr int kInputs = 1, kSaved = 4;
  using Arguments = std::tuple<int64_t, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<4>& saved, const Wanted<1>&,
                                int64_t kind, int64_t reduction) {
    const auto& [x, target, weight, positive_weight] = saved;
    return {call_loss_backward(dy[0], x, target, if_defined(weight), if_defined(positive_weight), kind,
                               reduction)};
  }
};

Tensor weighted_loss_autograd(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                              const OptionalTensor& positive_weight, int64_t kind, int64_t reduction) {
  TORCH_CHECK(!needs_grad(target) && !needs_grad(weight) && !needs_grad(positive_weight),
              "fastnn::_weighted_loss has no gradient of the target or the weights");
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_loss(x, target, weight, positive_weight, kind, reduction);
  };
  if (!records(x)) return run();
  const auto node = make_node<PointwiseLossGradient>({kind, reduction}, x);
  const Tensor y = run();
  node->output(y).keep(0, x).keep(1, target);
  node->keep(2, or_undefined(weight)).keep(3, or_undefined(positive_weight));
  return y;
}

Tensor weighted_loss_backward_autograd(const Tensor& dy, const Tensor& x, const Tensor& target,
                                       const OptionalTensor& weight, const OptionalTensor& positive_weight,
                                       int64_t kind, int64_t reduction) {
  if (!records(dy, x, target)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_loss_backward(dy, x, target, weight, positive_weight, kind, reduction);
  }
  Tensor slope;
  if (kind == kSquared) {
    slope = 2 * (x - target);
  } else if (defined(positive_weight)) {
    slope = (1 + (*positive_weight - 1) * target) * x.sigmoid() - *positive_weight * target;
  } else {
    slope = x.sigmoid() - target;
  }
  slope = slope * dy;
  const bool weighted = defined(weight);
  if (weighted) slope = slope * *weight;
  if (reduction != at::Reduction::Mean) return slope;
  return weighted && kind == kSquared ? slope / weight->expand_as(x).sum() : slope / x.sym_numel();
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_pointwise_loss(Tensor input, Tensor target, int kind, int reduction) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("_pointwise_loss_backward(Tensor dy, Tensor input, Tensor target, int kind, int reduction) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "_weighted_loss(Tensor input, Tensor target, Tensor? weight, Tensor? positive_weight, int kind, int "
      "reduction) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_weighted_loss_backward(Tensor dy, Tensor input, Tensor target, Tensor? weight, Tensor? "
      "positive_weight, int kind, int reduction) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_pointwise_loss", pointwise_loss<weighted_loss_cpu>);
  m.impl("_pointwise_loss_backward", pointwise_loss_backward<weighted_loss_backward_cpu>);
  m.impl("_weighted_loss", weighted_loss_cpu);
  m.impl("_weighted_loss_backward", weighted_loss_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_pointwise_loss", pointwise_loss<weighted_loss_meta>);
  m.impl("_pointwise_loss_backward", pointwise_loss_backward<weighted_loss_backward_meta>);
  m.impl("_weighted_loss", weighted_loss_meta);
  m.impl("_weighted_loss_backward", weighted_loss_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_pointwise_loss", pointwise_loss<weighted_loss_autograd>);
  m.impl("_pointwise_loss_backward", pointwise_loss_backward<weighted_loss_backward_autograd>);
  m.impl("_weighted_loss", weighted_loss_autograd);
  m.impl("_weighted_loss_backward", weighted_loss_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

const Op mse_loss_op("mse_loss", "_pointwise_loss", kFloating, /*autocast=*/true);
const Op bce_with_logits_op("binary_cross_entropy_with_logits", "_pointwise_loss", kFloating,
                            /*autocast=*/true);

const char* why_not_pointwise(const Op& op, const Tensor& input, const Tensor& target, const Tensor& weight,
                              const Tensor& positive_weight, int64_t reduction) {
  if (const char* reason = why_not(op, input, target, weight, positive_weight)) return reason;
  if (input.sizes() != target.sizes()) return "a target of another shape than the input";
  if (needs_grad(target)) return "a gradient of the target";
  for (const Tensor* w : {&weight, &positive_weight}) {
    if (!w->defined()) continue;
    if (!input.is_cpu()) return "weights: no CUDA kernel";
    if (needs_grad(*w)) return "a gradient of the weights";
    if (!at::is_expandable_to(w->sizes(), input.sizes())) return "weights that do not fit the input";
  }
  if (input.numel() == 0) return "an empty input";
  return reduction < at::Reduction::None || reduction > at::Reduction::Sum ? "an unknown reduction" : nullptr;
}

// torch's function in Python; its op knows no weights.
Tensor weighted_mse_of_torch(const Tensor& input, const Tensor& target, const Tensor& weight,
                             int64_t reduction) {
  const Tensor y = (input - target).square() * weight;
  if (reduction == at::Reduction::None) return y;
  return reduction == at::Reduction::Mean ? y.sum() / weight.sum() : y.sum();
}

Tensor mse_loss(const Tensor& input, const Tensor& target, const OptionalTensor& weight, int64_t reduction) {
  const Tensor w = or_undefined(weight);
  return front(
      mse_loss_op, why_not_pointwise(mse_loss_op, input, target, w, Tensor(), reduction),
      [&] { return weighted_loss_autograd(input, target, weight, std::nullopt, kSquared, reduction); },
      [&] {
        return w.defined() ? weighted_mse_of_torch(input, target, w, reduction)
                           : at::mse_loss(input, target, reduction);
      });
}

Tensor binary_cross_entropy_with_logits(const Tensor& input, const Tensor& target,
                                        const OptionalTensor& weight, const OptionalTensor& pos_weight,
                                        int64_t reduction) {
  return front(
      bce_with_logits_op,
      why_not_pointwise(bce_with_logits_op, input, target, or_undefined(weight), or_undefined(pos_weight),
                        reduction),
      [&] { return weighted_loss_autograd(input, target, weight, pos_weight, kBinaryLogits, reduction); },
      [&] { return at::binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("mse_loss(Tensor input, Tensor target, Tensor? weight, int reduction) -> Tensor",
        {at::Tag::pt2_compliant_tag});
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
  bind_front<mse_loss>(m, "mse_loss", {"input", "target", "weight", "reduction"});
  bind_front<binary_cross_entropy_with_logits>(m, "binary_cross_entropy_with_logits",
                                               {"input", "target", "weight", "pos_weight", "reduction"});
}

}  // namespace
}  // namespace fastnn::ops
