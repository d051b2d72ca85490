// Cross-entropy of label smoothing and of class probabilities: private op, autograd. The front op is in
// loss.cpp.
#include "ops/loss_soft.h"

#include "fastnn/loss_soft.h"
#include "ops/front.h"
#include "ops/loss_targets.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

// Indices or probabilities, and the rows of `statistics`: peak, sum and, with probabilities, mass.
struct Distribution {
  Tensor index, weight, probability;
  SoftTargets view;
  int64_t rows = 2;

  Distribution(const Tensor& x, const Tensor& target, const OptionalTensor& class_weight, int64_t ignored,
               double smoothing) {
    if (target.is_floating_point()) {
      check_like(target, x, "class probabilities");
      probability = target.contiguous();
      weight = vector_of(class_weight, class_view(x).length, compute_type(x));
      view.probability = probability.const_data_ptr();
      view.hard.class_weight = data(weight);
      rows = 3;
    } else {
      const Classes classes(x, target, class_weight, ignored);
      index = classes.index, weight = classes.weight;
      view.hard = classes.view;
      view.weight_sum = weight.defined() ? weight.sum(at::kDouble).item<double>()
                                         : static_cast<double>(class_view(x).length);
    }
    view.smoothing = smoothing;
  }
};

// The loss; the statistics of each position; what the mean is divided by, in double.
Tensors soft_cpu(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                 int64_t ignored, double smoothing) {
  const DimensionView v = class_view(x);
  const Distribution q(x, target, weight, ignored, smoothing);
  const Tensor dense = x.contiguous();
  const int64_t positions = v.outer * v.inner;
  Tensor statistics = at::empty({q.rows, positions}, x.options().dtype(compute_type(x)));
  Tensor loss = positions_like(x), normaliser = at::empty({}, x.options().dtype(at::kDouble));
  cpu::soft_cross_entropy_forward({.dtype = dtype_of(x),
                                   .N = v.outer,
                                   .C = v.length,
                                   .inner = v.inner,
                                   .target = q.view,
                                   .x = dense.const_data_ptr(),
                                   .peak = statistics[0].data_ptr(),
                                   .sum = statistics[1].data_ptr(),
                                   .mass = q.rows == 3 ? statistics[2].data_ptr() : nullptr,
                                   .loss = loss.data_ptr()});
  double divisor = 1;
  if (reduction == at::Reduction::Mean) {
    divisor = q.index.defined() ? cpu::sum_of_weights(dtype_of(x), q.view.hard, positions)
                                : static_cast<double>(positions);
  }
  normaliser.fill_(divisor);
  if (reduction != at::Reduction::None) return {reduced_loss(loss, x, divisor), statistics, normaliser};
  return {loss.to(x.scalar_type()), statistics, normaliser};
}

Tensor soft_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& target,
                         const OptionalTensor& weight, const Tensor& statistics, const Tensor& normaliser,
                         int64_t reduction, int64_t ignored, double smoothing) {
  const DimensionView v = class_view(x);
  const Distribution q(x, target, weight, ignored, smoothing);
  check_sizes(statistics, {q.rows, v.outer * v.inner}, at::empty({0}, x.options().dtype(compute_type(x))),
              "statistics");
  TORCH_CHECK(normaliser.numel() == 1, "fastnn: a normaliser of ", normaliser.sizes());
  const Tensor dense = x.contiguous(), slopes = slopes_of(dy, x, reduction), kept = statistics.contiguous();
  Tensor dx = at::empty(x.sizes(), x.options());
  cpu::soft_cross_entropy_backward({.dtype = dtype_of(x),
                                    .N = v.outer,
                                    .C = v.length,
                                    .inner = v.inner,
                                    .target = q.view,
                                    .dy = slopes.const_data_ptr(),
                                    .dy_is_number = reduction != at::Reduction::None,
                                    .scale = 1 / normaliser.item<double>(),
                                    .x = dense.const_data_ptr(),
                                    .peak = kept[0].const_data_ptr(),
                                    .sum = kept[1].const_data_ptr(),
                                    .mass = q.rows == 3 ? kept[2].const_data_ptr() : nullptr,
                                    .dx = dx.data_ptr()});
  return dx;
}

Tensors soft_meta(const Tensor& x, const Tensor& target, const OptionalTensor&, int64_t reduction, int64_t,
                  double) {
  const auto sizes = x.sym_sizes();
  const size_t dim = sizes.size() == 1 ? 0 : 1;
  std::vector<c10::SymInt> positions = sizes.vec();
  positions.erase(positions.begin() + dim);
  const int64_t rows = target.is_floating_point() ? 3 : 2;
  return {reduction == at::Reduction::None ? at::empty_symint(positions, x.options())
                                           : at::empty({}, x.options()),
          at::empty_symint({rows, x.sym_numel() / sizes[dim]}, x.options().dtype(compute_type(x))),
          at::empty({}, x.options().dtype(at::kDouble))};
}
Tensor soft_backward_meta(const Tensor&, const Tensor& x, const Tensor&, const OptionalTensor&, const Tensor&,
                          const Tensor&, int64_t, int64_t, double) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

// --- autograd --------------------------------------------------------------------------------------------

Tensors call_soft(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                  int64_t ignored, double smoothing) {
  static const auto op = handle<decltype(soft_cpu)>("fastnn::_cross_entropy_soft");
  return op.call(x, target, weight, reduction, ignored, smoothing);
}
Tensor call_soft_backward(const Tensor& dy, const Tensor& x, const Tensor& target,
                          const OptionalTensor& weight, const Tensor& statistics, const Tensor& normaliser,
                          int64_t reduction, int64_t ignored, double smoothing) {
  static const auto op = handle<decltype(soft_backward_cpu)>("fastnn::_cross_entropy_soft_backward");
  return op.call(dy, x, target, weight, statistics, normaliser, reduction, ignored, smoothing);
}

struct SoftGradient {
  static constexpr const char* kName = "CrossEntropySoftBackward";
  static constexpr int kInputs = 1, kSaved = 5;
  using Arguments = std::tuple<int64_t, int64_t, double>;
  static variable_list backward(const variable_list& dy, const Saved<5>& saved, const Wanted<1>&,
                                int64_t reduction, int64_t ignored, double smoothing) {
    const auto& [x, target, weight, statistics, normaliser] = saved;
    const OptionalTensor w = weight.defined() ? OptionalTensor(weight) : std::nullopt;
    return {call_soft_backward(dy[0], x, target, w, statistics, normaliser, reduction, ignored, smoothing)};
  }
};

Tensors soft_autograd(const Tensor& x, const Tensor& target, const OptionalTensor& weight, int64_t reduction,
                      int64_t ignored, double smoothing) {
  TORCH_CHECK(!needs_grad(weight) && !needs_grad(target),
              "fastnn::_cross_entropy_soft has no gradient of the targets or the class weights");
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_soft(x, target, weight, reduction, ignored, smoothing);
  };
  if (!records(x)) return run();
  const auto node = make_node<SoftGradient>({reduction, ignored, smoothing}, x);
  auto [loss, statistics, normaliser] = run();
  node->output(loss).keep(0, x).keep(1, target).keep(2, or_undefined(weight));
  node->keep(3, statistics).keep(4, normaliser);
  return {loss, statistics, normaliser};
}

// For second derivatives: the gradient made of differentiable ops.
Tensor soft_backward_autograd(const Tensor& dy, const Tensor& x, const Tensor& target,
                              const OptionalTensor& weight, const Tensor& statistics,
                              const Tensor& normaliser, int64_t reduction, int64_t ignored,
                              double smoothing) {
  if (!records(dy, x)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_soft_backward(dy, x, target, weight, statistics, normaliser, reduction, ignored, smoothing);
  }
  const int64_t dim = x.dim() == 1 ? 0 : 1;
  Tensor q, slope = dy.unsqueeze(dy.dim() == x.dim() - 1 ? dim : 0) / normaliser.to(x.scalar_type());
  if (target.is_floating_point()) {
    q = target * (1 - smoothing);
  } else {
    const Tensor counts = target != ignored, index = target.masked_fill(counts.logical_not(), 0);
    slope = slope * counts.unsqueeze(dim);
    q = at::zeros_like(x).scatter(dim, index.unsqueeze(dim), 1 - smoothing);
  }
  q = q + at::Scalar(c10::SymFloat(smoothing) / c10::SymFloat(x.sym_size(dim)));
  if (weight && weight->defined()) {
    std::vector<int64_t> sizes(x.dim(), 1);
    sizes[dim] = -1;
    q = q * weight->view(sizes);
  }
  return (x.softmax(dim) * q.sum(dim, /*keepdim=*/true) - q) * slope;
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_cross_entropy_soft(Tensor input, Tensor target, Tensor? weight, int reduction, int ignore_index, "
      "float label_smoothing) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_cross_entropy_soft_backward(Tensor dy, Tensor input, Tensor target, Tensor? weight, Tensor "
      "statistics, Tensor normaliser, int reduction, int ignore_index, float label_smoothing) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_cross_entropy_soft", soft_cpu);
  m.impl("_cross_entropy_soft_backward", soft_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_cross_entropy_soft", soft_meta);
  m.impl("_cross_entropy_soft_backward", soft_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_cross_entropy_soft", soft_autograd);
  m.impl("_cross_entropy_soft_backward", soft_backward_autograd);
}

}  // namespace

Tensor cross_entropy_soft(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                          int64_t reduction, int64_t ignored, double smoothing) {
  return std::get<0>(soft_autograd(x, target, weight, reduction, ignored, smoothing));
}

}  // namespace fastnn::ops
