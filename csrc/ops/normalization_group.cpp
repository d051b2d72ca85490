// Group and instance norm: front ops; private ops for group norm and for instance norm with running
// statistics (which it updates in place), one backward op for both, autograd. Instance norm by running
// statistics is batch norm's.
#include "ops/bind.h"
#include "ops/node.h"
#include "ops/normalization.h"
#include "ops/parameters.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

Tensors forward(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, int64_t G,
                const Running* running_mean, const Running* running_var, double momentum, double eps) {
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  const GroupNormShape shape = shape_of(x, G, format);
  const Tensor dense = x.contiguous(format);
  const Tensor w = vector_of(weight, shape.C, type), b = vector_of(bias, shape.C, type);
  Tensor y = empty(x.sizes(), x.scalar_type(), format);
  Tensor mean = empty({shape.N, G}, type), rstd = empty({shape.N, G}, type);
  cpu::group_norm_forward({.dtype = dtype_of(x),
                           .shape = shape,
                           .x = dense.const_data_ptr(),
                           .y = y.data_ptr(),
                           .weight = data(w),
                           .bias = data(b),
                           .mean = mean.data_ptr(),
                           .rstd = rstd.data_ptr(),
                           .running_mean = running_mean ? running_mean->pointer() : nullptr,
                           .running_var = running_var ? running_var->pointer() : nullptr,
                           .momentum = momentum,
                           .eps = eps});
  return {y, mean, rstd};
}

// y, and mean and 1 / sqrt(var + eps) of each sample and group [N, G].
Tensors group_norm_cpu(const Tensor& x, int64_t G, const OptionalTensor& weight, const OptionalTensor& bias,
                       double eps) {
  return forward(x, weight, bias, G, nullptr, nullptr, 0, eps);
}

// The same with one channel per group; the running statistics change in place.
Tensors instance_norm_cpu(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                          const Tensor& running_mean, const Tensor& running_var, double momentum,
                          double eps) {
  TORCH_CHECK(x.dim() >= 2, "fastnn: an input of ", x.dim(), " dimensions");
  const auto type = compute_type(x);
  const Running mean(running_mean, x.size(1), type), var(running_var, x.size(1), type);
  Tensors result = forward(x, weight, bias, x.size(1), &mean, &var, momentum, eps);
  mean.write_back();
  var.write_back();
  return result;
}

Tensors group_norm_backward_cpu(const Tensor& dy, const Tensor& x, int64_t G, const OptionalTensor& weight,
                                const Tensor& mean, const Tensor& rstd, double, std::array<bool, 3> mask) {
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  const GroupNormShape shape = shape_of(x, G, format);
  check_like(dy, x, "dy");
  const Tensor dense = x.contiguous(format), dense_dy = dy.contiguous(format);
  const Tensor w = vector_of(weight, shape.C, type);
  const Tensor m = vector_of(mean, shape.N * G, type), r = vector_of(rstd, shape.N * G, type);
  Tensor dx = mask[0] ? empty(x.sizes(), x.scalar_type(), format) : empty({0}, x.scalar_type());
  Tensor dw = empty({mask[1] ? shape.C : 0}, type), db = empty({mask[2] ? shape.C : 0}, type);
  cpu::group_norm_backward({.dtype = dtype_of(x),
                            .shape = shape,
                            .dy = dense_dy.const_data_ptr(),
                            .x = dense.const_data_ptr(),
                            .weight = data(w),
                            .mean = data(m),
                            .rstd = data(r),
                            .dx = mask[0] ? dx.data_ptr() : nullptr,
                            .dweight = mask[1] ? dw.data_ptr() : nullptr,
                            .dbias = mask[2] ? db.data_ptr() : nullptr});
  const auto wanted = parameter_type(x, weight);
  if (wanted == type) return {dx, dw, db};
  return {dx, dw.to(wanted), db.to(wanted)};
}

Tensor like_input(const Tensor& x) {
  return at::empty_symint(x.sym_sizes(), x.options(), x.suggest_memory_format());
}

Tensors statistics_meta(const Tensor& x, const c10::SymInt& G) {
  Tensor mean = at::empty_symint({x.sym_size(0), G}, x.options().dtype(compute_type(x)));
  return {like_input(x), mean, at::empty_like(mean)};
}
Tensors group_norm_meta(const Tensor& x, int64_t G, const OptionalTensor&, const OptionalTensor&, double) {
  return statistics_meta(x, G);
}
Tensors instance_norm_meta(const Tensor& x, const OptionalTensor&, const OptionalTensor&, const Tensor&,
                           const Tensor&, double, double) {
  return statistics_meta(x, x.sym_size(1));
}
Tensors group_norm_backward_meta(const Tensor&, const Tensor& x, int64_t, const OptionalTensor& weight,
                                 const Tensor&, const Tensor&, double, std::array<bool, 3> mask) {
  const auto options = x.options().dtype(parameter_type(x, weight));
  const auto parameter = [&](bool wanted) {
    return at::empty_symint({wanted ? x.sym_size(1) : c10::SymInt(0)}, options);
  };
  return {mask[0] ? like_input(x) : at::empty({0}, x.options()), parameter(mask[1]), parameter(mask[2])};
}

// --- autograd --------------------------------------------------------------------------------------------

Tensors call_group_norm(const Tensor& x, int64_t G, const OptionalTensor& weight, const OptionalTensor& bias,
                        double eps) {
  static const auto op = handle<decltype(group_norm_cpu)>("fastnn::_group_norm");
  return op.call(x, G, weight, bias, eps);
}

Tensors call_instance_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                           const Tensor& running_mean, const Tensor& running_var, double momentum,
                           double eps) {
  static const auto op = handle<decltype(instance_norm_cpu)>("fastnn::_instance_norm");
  return op.call(x, weight, bias, running_mean, running_var, momentum, eps);
}

Tensors call_backward(const Tensor& dy, const Tensor& x, int64_t G, const OptionalTensor& weight,
                      const Tensor& mean, const Tensor& rstd, double eps, std::array<bool, 3> mask) {
  static const auto op = handle<decltype(group_norm_backward_cpu)>("fastnn::_group_norm_backward");
  return op.call(dy, x, G, weight, mean, rstd, eps, mask);
}

Tensor batch_norm_eval(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                       const Tensor& mean, const Tensor& var, double eps) {
  static const auto op = handle<Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                       const Tensor&, const Tensor&, double)>("fastnn::_batch_norm_eval");
  return op.call(x, weight, bias, mean, var, eps);
}

// Of both norms.
struct GroupNormGradient {
  static constexpr const char* kName = "GroupNormBackward";
  static constexpr int kInputs = 3, kSaved = 4;
  using Arguments = std::tuple<int64_t, double>;
  static variable_list backward(const variable_list& dy, const Saved<4>& saved, const Wanted<3>& wanted,
                                int64_t G, double eps) {
    const auto& [x, weight, mean, rstd] = saved;
    auto [dx, dw, db] = call_backward(dy[0], x, G, weight, mean, rstd, eps, wanted);
    return {wanted[0] ? dx : Tensor(), wanted[1] ? dw : Tensor(), wanted[2] ? db : Tensor()};
  }
};

// `call` runs the private op.
template <class Call>
Tensors with_autograd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, int64_t G,
                      double eps, const Call& call) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call();
  };
  if (!records(x, weight, bias)) return run();
  const auto node = make_node<GroupNormGradient>({G, eps}, x, weight, bias);
  auto [y, mean, rstd] = run();
  node->output(y).keep(0, x).keep(1, or_undefined(weight)).keep(2, mean).keep(3, rstd);
  return {y, mean, rstd};
}

Tensors group_norm_autograd(const Tensor& x, int64_t G, const OptionalTensor& weight,
                            const OptionalTensor& bias, double eps) {
  return with_autograd(x, weight, bias, G, eps, [&] { return call_group_norm(x, G, weight, bias, eps); });
}

Tensors instance_norm_autograd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                               const Tensor& running_mean, const Tensor& running_var, double momentum,
                               double eps) {
  announce_change(running_mean);
  announce_change(running_var);
  return with_autograd(x, weight, bias, x.size(1), eps, [&] {
    return call_instance_norm(x, weight, bias, running_mean, running_var, momentum, eps);
  });
}

Tensors group_norm_backward_autograd(const Tensor& dy, const Tensor& x, int64_t G,
                                     const OptionalTensor& weight, const Tensor& mean, const Tensor& rstd,
                                     double eps, std::array<bool, 3> mask) {
  if (!records(dy, x, weight)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_backward(dy, x, G, weight, mean, rstd, eps, mask);
  }
  // [N, G, C / G, L]: statistics over the last two, parameters [G, C / G, 1].
  const auto type = compute_type(x), wanted = parameter_type(x, weight);
  const auto N = x.sym_size(0), C = x.sym_size(1);
  const auto grouped = [&](const Tensor& t) { return t.to(type).reshape_symint({N, G, C / G, -1}); };
  const Tensor slope = grouped(dy);
  const bool has_weight = weight && weight->defined();
  const Normalised n(grouped(x), has_weight ? slope * weight->to(type).reshape_symint({G, C / G, 1}) : slope,
                     {2, 3}, eps, false);
  const auto parameter = [&](bool wants, const Tensor& t) {
    return wants ? t.sum(at::IntArrayRef{0, 3}).reshape_symint({C}).to(wanted)
                 : at::empty({0}, x.options().dtype(wanted));
  };
  return {
      mask[0]
          ? n.gradient.reshape_symint(x.sym_sizes()).to(x.scalar_type()).contiguous(x.suggest_memory_format())
          : at::empty({0}, x.options()),
      parameter(mask[1], slope * n.value), parameter(mask[2], slope)};
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_group_norm(Tensor input, int groups, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!) running_mean, Tensor(b!) "
      "running_var, float momentum, float eps) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_group_norm_backward(Tensor dy, Tensor input, int groups, Tensor? weight, Tensor mean, Tensor rstd, "
      "float eps, bool[3] mask) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_group_norm", group_norm_cpu);
  m.impl("_instance_norm", instance_norm_cpu);
  m.impl("_group_norm_backward", group_norm_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_group_norm", group_norm_meta);
  m.impl("_instance_norm", instance_norm_meta);
  m.impl("_group_norm_backward", group_norm_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_group_norm", group_norm_autograd);
  m.impl("_instance_norm", instance_norm_autograd);
  m.impl("_group_norm_backward", group_norm_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

const Op group_norm_op("group_norm", "_group_norm", kFloating);
const Op instance_norm_op("instance_norm", "_group_norm", kFloating);

const char* why_not_channels(const Op& op, const Tensor& input, c10::ArrayRef<const Tensor*> parameters) {
  if (const char* reason = why_not(op, input)) return reason;
  if (input.dim() < 2) return "an input of fewer than two dimensions";
  if (input.numel() == 0) return "an empty input";
  for (const Tensor* t : parameters) {
    if (t->defined() && (t->dim() != 1 || t->size(0) != input.size(1)))
      return "a parameter that is not one number per channel";
  }
  return why_not_parameters(op, input, parameters);
}

Tensor group_norm(const Tensor& input, int64_t num_groups, const OptionalTensor& weight,
                  const OptionalTensor& bias, double eps) {
  const Tensor w = or_undefined(weight), b = or_undefined(bias);
  const char* reason = why_not_channels(group_norm_op, input, {&w, &b});
  if (reason == nullptr && (num_groups <= 0 || input.size(1) % num_groups != 0)) {
    reason = "channels that the groups do not divide";
  }
  return front(
      group_norm_op, reason,
      [&] { return std::get<0>(group_norm_autograd(input, num_groups, weight, bias, eps)); },
      [&] {
        return at::group_norm(input, num_groups, weight, bias, eps, at::globalContext().userEnabledCuDNN());
      });
}

Tensor instance_norm(const Tensor& input, const OptionalTensor& running_mean,
                     const OptionalTensor& running_var, const OptionalTensor& weight,
                     const OptionalTensor& bias, bool use_input_stats, double momentum, double eps) {
  const Tensor w = or_undefined(weight), b = or_undefined(bias);
  const Tensor mean = or_undefined(running_mean), var = or_undefined(running_var);
  const char* reason = why_not_channels(instance_norm_op, input, {&w, &b, &mean, &var});
  if (reason == nullptr) {
    if (mean.defined() != var.defined()) reason = "one running statistic without the other";
    if (!use_input_stats && !mean.defined()) reason = "no running statistics";
    if (use_input_stats && input.numel() == input.size(0) * input.size(1)) reason = "one value per channel";
  }
  return front(
      instance_norm_op, reason,
      [&] {
        const Tensor x = input.contiguous();  // and so is the output, whatever the layout: as torch's
        if (!use_input_stats) return batch_norm_eval(x, weight, bias, mean, var, eps);
        if (!mean.defined()) return std::get<0>(group_norm_autograd(x, x.size(1), weight, bias, eps));
        return std::get<0>(instance_norm_autograd(x, weight, bias, mean, var, momentum, eps));
      },
      [&] {
        return at::instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum,
                                 eps, at::globalContext().userEnabledCuDNN());
      });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("group_norm(Tensor input, int num_groups, Tensor? weight, Tensor? bias, float eps) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.impl("group_norm", c10::DispatchKey::CompositeImplicitAutograd, group_norm);
  m.def(
      "instance_norm(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight, "
      "Tensor? "
      "bias, bool use_input_stats, float momentum, float eps) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.impl("instance_norm", c10::DispatchKey::CompositeImplicitAutograd, instance_norm);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("group_norm", group_norm);
  m.impl("instance_norm", instance_norm);
}

FASTNN_BIND(normalization_group, m) {
  bind_front<group_norm>(m, "group_norm", {"input", "num_groups", "weight", "bias", "eps"});
  bind_front<instance_norm>(
      m, "instance_norm",
      {"input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"});
}

}  // namespace
}  // namespace fastnn::ops
