// Cross-entropy: the front op; the private op of class indices and its autograd. Label smoothing and class
// probabilities: loss_soft.cpp.
#include "ops/bind.h"
#include "ops/front.h"
#include "ops/loss_soft.h"
#include "ops/loss_targets.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

// The loss; the largest logit and the sum of exponentials of each position; what the mean is divided by, in
// double.
Tensors cross_entropy_cpu(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                          int64_t reduction, int64_t ignored) {
  const DimensionView v = class_view(x);
  const Classes classes(x, target, weight, ignored);
  const Tensor dense = x.contiguous();
  const int64_t positions = v.outer * v.inner;
  const auto options = x.options().dtype(compute_type(x));
  Tensor statistics = at::empty({2, positions}, options);
  Tensor loss = at::empty(target.sizes(), options),
         normaliser = at::empty({}, x.options().dtype(at::kDouble));
  const DType dtype = dtype_of(x);
  cpu::cross_entropy_forward({.dtype = dtype,
                              .N = v.outer,
                              .C = v.length,
                              .inner = v.inner,
                              .target = classes.view,
                              .x = dense.const_data_ptr(),
                              .peak = statistics[0].data_ptr(),
                              .sum = statistics[1].data_ptr(),
                              .loss = loss.data_ptr()});
  double divisor = 1;
  if (reduction != at::Reduction::None) {
    if (reduction == at::Reduction::Mean) divisor = cpu::sum_of_weights(dtype, classes.view, positions);
    loss = reduced_loss(loss, x, divisor);
  }
  normaliser.fill_(divisor);
  return {loss.to(x.scalar_type()), statistics, normaliser};
}

Tensor cross_entropy_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& target,
                                  const OptionalTensor& weight, const Tensor& statistics,
                                  const Tensor& normaliser, int64_t reduction, int64_t ignored) {
  const DimensionView v = class_view(x);
  const Classes classes(x, target, weight, ignored);
  const int64_t positions = v.outer * v.inner;
  check_sizes(statistics, {2, positions}, at::empty({0}, x.options().dtype(compute_type(x))), "statistics");
  const Tensor dense = x.contiguous(), slopes = slopes_of(dy, x, reduction), kept = statistics.contiguous();
  Tensor dx = at::empty(x.sizes(), x.options());
  cpu::cross_entropy_backward({.dtype = dtype_of(x),
                               .N = v.outer,
                               .C = v.length,
                               .inner = v.inner,
                               .target = classes.view,
                               .dy = slopes.const_data_ptr(),
                               .dy_is_number = reduction != at::Reduction::None,
                               .scale = 1 / normaliser.item<double>(),
                               .x = dense.const_data_ptr(),
                               .peak = kept[0].const_data_ptr(),
                               .sum = kept[1].const_data_ptr(),
                               .dx = dx.data_ptr()});
  return dx;
}

Tensors cross_entropy_meta(const Tensor& x, const Tensor& target, const OptionalTensor&, int64_t reduction,
                           int64_t) {
  return {reduction == at::Reduction::None ? at::empty_symint(target.sym_sizes(), x.options())
                                           : at::empty({}, x.options()),
          at::empty_symint({2, target.sym_numel()}, x.options().dtype(compute_type(x))),
          at::empty({}, x.options().dtype(at::kDouble))};
}
Tensor cross_entropy_backward_meta(const Tensor&, const Tensor& x, const Tensor&, const OptionalTensor&,
                                   const Tensor&, const Tensor&, int64_t, int64_t) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

// --- autograd --------------------------------------------------------------------------------------------

Tensors call_cross_entropy(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                           int64_t reduction, int64_t ignored) {
  static const auto op = handle<decltype(cross_entropy_cpu)>("fastnn::_cross_entropy");
  return op.call(x, target, weight, reduction, ignored);
}
Tensor call_cross_entropy_backward(const Tensor& dy, const Tensor& x, const Tensor& target,
                                   const OptionalTensor& weight, const Tensor& statistics,
                                   const Tensor& normaliser, int64_t reduction, int64_t ignored) {
  static const auto op = handle<decltype(cross_entropy_backward_cpu)>("fastnn::_cross_entropy_backward");
  return op.call(dy, x, target, weight, statistics, normaliser, reduction, ignored);
}

struct CrossEntropyGradient {
  static constexpr const char* kName = "CrossEntropyBackward";
  static constexpr int kInputs = 1, kSaved = 5;
  using Arguments = std::tuple<int64_t, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<5>& saved, const Wanted<1>&,
                                int64_t reduction, int64_t ignored) {
    const auto& [x, target, weight, statistics, normaliser] = saved;
    const OptionalTensor w = weight.defined() ? OptionalTensor(weight) : std::nullopt;
    return {call_cross_entropy_backward(dy[0], x, target, w, statistics, normaliser, reduction, ignored)};
  }
};

Tensors cross_entropy_autograd(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                               int64_t reduction, int64_t ignored) {
  TORCH_CHECK(!needs_grad(weight), "fastnn::_cross_entropy has no gradient of the class weights");
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_cross_entropy(x, target, weight, reduction, ignored);
  };
  if (!records(x)) return run();
  const auto node = make_node<CrossEntropyGradient>({reduction, ignored}, x);
  auto [loss, statistics, normaliser] = run();
  node->output(loss).keep(0, x).keep(1, target).keep(2, or_undefined(weight));
  node->keep(3, statistics).keep(4, normaliser);
  return {loss, statistics, normaliser};
}

// For second derivatives: the gradient of torch's loss, made of differentiable ops.
Tensor cross_entropy_backward_autograd(const Tensor& dy, const Tensor& x, const Tensor& target,
                                       const OptionalTensor& weight, const Tensor& statistics,
                                       const Tensor& normaliser, int64_t reduction, int64_t ignored) {
  if (!records(dy, x)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_cross_entropy_backward(dy, x, target, weight, statistics, normaliser, reduction, ignored);
  }
  const int64_t dim = x.dim() == 1 ? 0 : 1;
  const Tensor counts = target != ignored, index = target.masked_fill(counts.logical_not(), 0);
  Tensor slope = counts.to(x.scalar_type()) * dy / normaliser.to(x.scalar_type());
  if (weight && weight->defined()) {
    slope = slope * weight->index_select(0, index.reshape({-1})).view_as(index).to(x.scalar_type());
  }
  slope = slope.unsqueeze(dim);
  return x.softmax(dim) * slope - at::zeros_like(x).scatter(dim, index.unsqueeze(dim), slope);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index) -> "
      "(Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_cross_entropy_backward(Tensor dy, Tensor input, Tensor target, Tensor? weight, Tensor statistics, "
      "Tensor normaliser, int reduction, int ignore_index) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_cross_entropy", cross_entropy_cpu);
  m.impl("_cross_entropy_backward", cross_entropy_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_cross_entropy", cross_entropy_meta);
  m.impl("_cross_entropy_backward", cross_entropy_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_cross_entropy", cross_entropy_autograd);
  m.impl("_cross_entropy_backward", cross_entropy_backward_autograd);
}

// --- front op --------------------------------------------------------------------------------------------

const Op cross_entropy_op("cross_entropy", "_cross_entropy", kFloating, /*autocast=*/true);
const Op soft_op("cross_entropy_soft", "_cross_entropy_soft", kFloating, /*autocast=*/true);

const char* why_not_cross_entropy(const Op& op, const Tensor& input, const Tensor& target,
                                  const OptionalTensor& weight, int64_t reduction, int64_t ignore_index,
                                  double label_smoothing) {
  if (const char* reason = why_not(op, input, or_undefined(weight))) return reason;
  if (!is_plain(target)) return "targets that are not plain and dense";
  if (const char* reason = why_not_classes(input, weight, reduction)) return reason;
  if (!(label_smoothing >= 0 && label_smoothing <= 1)) return "label smoothing outside of [0, 1]";
  if (!target.is_floating_point()) return why_not_indices(input, target);
  if (const char* reason = why_not(op, input, target)) return reason;
  if (needs_grad(target)) return "a gradient of the class probabilities";
  if (ignore_index >= 0) return "an ignored class beside class probabilities";
  return target.sizes() == input.sizes() ? nullptr : "class probabilities of another shape than the input";
}

Tensor cross_entropy(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     int64_t reduction, int64_t ignore_index, double label_smoothing) {
  const bool soft = label_smoothing != 0 || target.is_floating_point();
  const Op& op = soft ? soft_op : cross_entropy_op;
  return front(
      op, why_not_cross_entropy(op, input, target, weight, reduction, ignore_index, label_smoothing),
      [&] {
        return soft ? cross_entropy_soft(input, target, weight, reduction, ignore_index, label_smoothing)
                    : std::get<0>(cross_entropy_autograd(input, target, weight, reduction, ignore_index));
      },
      [&] {
        return at::cross_entropy_loss(input, target, weight, reduction, ignore_index, label_smoothing);
      });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "cross_entropy(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, float "
      "label_smoothing) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.impl("cross_entropy", c10::DispatchKey::CompositeImplicitAutograd, cross_entropy);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("cross_entropy", cross_entropy);
}

FASTNN_BIND(loss, m) {
  bind_front<cross_entropy>(m, "cross_entropy",
                            {"input", "target", "weight", "reduction", "ignore_index", "label_smoothing"});
}

}  // namespace
}  // namespace fastnn::ops
