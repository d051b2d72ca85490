// Batch normalisation: private ops for batch statistics (which updates the running ones in place) and for
// running statistics, one backward op for both, autograd, the front op.
#include "ops/batchnorm.h"

#include "ops/bind.h"
#include "ops/node.h"
#include "ops/parameters.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

// y, mean and 1 / sqrt(var + eps) of the batch [C]; the running statistics change in place.
Tensors train_cpu(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& running_mean, const OptionalTensor& running_var, double momentum,
                  double eps) {
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  const Tensor dense = x.contiguous(format), w = vector_of(weight, x.size(1), type),
               b = vector_of(bias, x.size(1), type);
  Tensor y = empty(x.sizes(), x.scalar_type(), format);
  Tensor mean = empty({x.size(1)}, type), invstd = empty({x.size(1)}, type);
  const Running running_m(running_mean, x.size(1), type), running_v(running_var, x.size(1), type);
  cpu::batchnorm_forward({.dtype = dtype_of(x),
                          .shape = shape_of(x, format),
                          .x = dense.const_data_ptr(),
                          .y = y.data_ptr(),
                          .weight = data(w),
                          .bias = data(b),
                          .running_mean = running_m.pointer(),
                          .running_var = running_v.pointer(),
                          .save_mean = mean.data_ptr(),
                          .save_invstd = invstd.data_ptr(),
                          .training = true,
                          .momentum = momentum,
                          .eps = eps});
  running_m.write_back();
  running_v.write_back();
  return {y, mean, invstd};
}

Tensor eval_cpu(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                const Tensor& running_mean, const Tensor& running_var, double eps) {
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  const Tensor dense = x.contiguous(format), w = vector_of(weight, x.size(1), type),
               b = vector_of(bias, x.size(1), type);
  const Tensor mean = vector_of(running_mean, x.size(1), type), var = vector_of(running_var, x.size(1), type);
  Tensor y = empty(x.sizes(), x.scalar_type(), format);
  cpu::batchnorm_forward({.dtype = dtype_of(x),
                          .shape = shape_of(x, format),
                          .x = dense.const_data_ptr(),
                          .y = y.data_ptr(),
                          .weight = data(w),
                          .bias = data(b),
                          .running_mean = data(mean),
                          .running_var = data(var),
                          .eps = eps});
  return y;
}

// Gradients of input, weight and bias; those that `mask` does not ask for are empty tensors. `mean` and
// `spread` are the batch's mean and invstd, or the running mean and variance when not training.
Tensors backward_cpu(const Tensor& dy, const Tensor& x, const OptionalTensor& weight, const Tensor& mean,
                     const Tensor& spread, bool training, double eps, std::array<bool, 3> mask) {
  const auto format = x.suggest_memory_format();
  const auto type = compute_type(x);
  const Tensor dense = x.contiguous(format), dense_dy = dy.contiguous(format),
               w = vector_of(weight, x.size(1), type);
  check_like(dy, x, "dy");
  const Tensor m = vector_of(mean, x.size(1), type), s = vector_of(spread, x.size(1), type);
  Tensor dx = mask[0] ? empty(x.sizes(), x.scalar_type(), format) : empty({0}, x.scalar_type());
  Tensor dw = empty({mask[1] ? x.size(1) : 0}, type), db = empty({mask[2] ? x.size(1) : 0}, type);
  cpu::batchnorm_backward({.dtype = dtype_of(x),
                           .shape = shape_of(x, format),
                           .dy = dense_dy.const_data_ptr(),
                           .x = dense.const_data_ptr(),
                           .weight = data(w),
                           .mean = m.const_data_ptr(),
                           .invstd = training ? s.const_data_ptr() : nullptr,
                           .var = training ? nullptr : s.const_data_ptr(),
                           .dx = mask[0] ? dx.data_ptr() : nullptr,
                           .dweight = mask[1] ? dw.data_ptr() : nullptr,
                           .dbias = mask[2] ? db.data_ptr() : nullptr,
                           .training = training,
                           .eps = eps});
  const auto parameter_type = weight && weight->defined() ? weight->scalar_type() : type;
  if (parameter_type == type) return {dx, dw, db};
  return {dx, dw.to(parameter_type), db.to(parameter_type)};
}

Tensor like_input(const Tensor& x) {
  return at::empty_like(x, x.suggest_memory_format());
}

Tensors train_meta(const Tensor& x, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                   const OptionalTensor&, double, double) {
  Tensor mean = at::empty_symint({x.sym_size(1)}, x.options().dtype(compute_type(x)));
  return {like_input(x), mean, at::empty_like(mean)};
}
Tensor eval_meta(const Tensor& x, const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&,
                 double) {
  return like_input(x);
}
Tensors backward_meta(const Tensor&, const Tensor& x, const OptionalTensor& weight, const Tensor&,
                      const Tensor&, bool, double, std::array<bool, 3> mask) {
  const auto type = weight && weight->defined() ? weight->scalar_type() : compute_type(x);
  const auto parameter = [&](bool wanted) {
    return at::empty_symint({wanted ? x.sym_size(1) : c10::SymInt(0)}, x.options().dtype(type));
  };
  return {mask[0] ? like_input(x) : at::empty({0}, x.options()), parameter(mask[1]), parameter(mask[2])};
}

// --- autograd --------------------------------------------------------------------------------------------

Tensors batch_norm_train(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& running_mean, const OptionalTensor& running_var,
                         double momentum, double eps) {
  static const auto op = handle<decltype(train_cpu)>("fastnn::_batch_norm_train");
  return op.call(x, weight, bias, running_mean, running_var, momentum, eps);
}

Tensor batch_norm_eval(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                       const Tensor& running_mean, const Tensor& running_var, double eps) {
  static const auto op = handle<decltype(eval_cpu)>("fastnn::_batch_norm_eval");
  return op.call(x, weight, bias, running_mean, running_var, eps);
}

Tensors batch_norm_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                            const Tensor& mean, const Tensor& spread, bool training, double eps,
                            std::array<bool, 3> mask) {
  static const auto op = handle<decltype(backward_cpu)>("fastnn::_batch_norm_backward");
  return op.call(dy, x, weight, mean, spread, training, eps, mask);
}

// training: mean and invstd of the batch are saved; otherwise the running ones, whose invstd needs eps.
struct BatchNormGradient {
  static constexpr const char* kName = "BatchNormBackward";
  static constexpr int kInputs = 3, kSaved = 4;
  using Arguments = std::tuple<bool, double>;
  static variable_list backward(const variable_list& dy, const Saved<4>& saved, const Wanted<3>& wanted,
                                bool training, double eps) {
    const auto& [x, weight, mean, spread] = saved;
    auto [dx, dw, db] = batch_norm_backward(dy[0], x, weight, mean, spread, training, eps, wanted);
    return {wanted[0] ? dx : Tensor(), wanted[1] ? dw : Tensor(), wanted[2] ? db : Tensor()};
  }
};

Tensors train_autograd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& running_mean, const OptionalTensor& running_var, double momentum,
                       double eps) {
  announce_change(running_mean);
  announce_change(running_var);
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return batch_norm_train(x, weight, bias, running_mean, running_var, momentum, eps);
  };
  if (!records(x, weight, bias)) return run();
  const auto node = make_node<BatchNormGradient>({/*training=*/true, /*eps=*/0.0}, x, weight, bias);
  auto [y, mean, invstd] = run();
  node->output(y).keep(0, x).keep(1, or_undefined(weight)).keep(2, mean).keep(3, invstd);
  return {y, mean, invstd};
}

Tensor eval_autograd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                     const Tensor& running_mean, const Tensor& running_var, double eps) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return batch_norm_eval(x, weight, bias, running_mean, running_var, eps);
  };
  if (!records(x, weight, bias)) return run();
  const auto node = make_node<BatchNormGradient>({/*training=*/false, eps}, x, weight, bias);
  const Tensor y = run();
  node->output(y).keep(0, x).keep(1, or_undefined(weight)).keep(2, running_mean).keep(3, running_var);
  return y;
}

// Second derivatives: torch's backward op is differentiable. It wants one dtype, the compute type.
Tensors backward_autograd(const Tensor& dy, const Tensor& x, const OptionalTensor& weight, const Tensor& mean,
                          const Tensor& spread, bool training, double eps, std::array<bool, 3> mask) {
  if (!records(dy, x, weight)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return batch_norm_backward(dy, x, weight, mean, spread, training, eps, mask);
  }
  const auto type = compute_type(x);
  const bool has_weight = weight && weight->defined();
  const OptionalTensor w = has_weight ? OptionalTensor(weight->to(type)) : std::nullopt;
  const OptionalTensor m = mean.to(type), s = spread.to(type), none;
  auto [dx, dw, db] =
      at::native_batch_norm_backward(dy.to(type), x.to(type), w, training ? none : m, training ? none : s,
                                     training ? m : none, training ? s : none, training, eps, mask);
  const auto parameter_type = has_weight ? weight->scalar_type() : type;
  const auto to = [](const Tensor& t, at::ScalarType wanted) { return t.defined() ? t.to(wanted) : t; };
  return {to(dx, x.scalar_type()), to(dw, parameter_type), to(db, parameter_type)};
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_batch_norm_train(Tensor input, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, float momentum, float eps) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_batch_norm_eval(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, "
      "float eps) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_batch_norm_backward(Tensor dy, Tensor input, Tensor? weight, Tensor mean, Tensor spread, bool "
      "training, "
      "float eps, bool[3] mask) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_batch_norm_train", train_cpu);
  m.impl("_batch_norm_eval", eval_cpu);
  m.impl("_batch_norm_backward", backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_batch_norm_train", train_meta);
  m.impl("_batch_norm_eval", eval_meta);
  m.impl("_batch_norm_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_batch_norm_train", train_autograd);
  m.impl("_batch_norm_eval", eval_autograd);
  m.impl("_batch_norm_backward", backward_autograd);
}

// --- front op --------------------------------------------------------------------------------------------

const Op batch_norm_op("batch_norm", "_batch_norm_train", kFloating);

const char* why_not_vectors(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& mean,
                            const Tensor& var) {
  for (const Tensor* t : {&weight, &bias, &mean, &var}) {
    if (t->defined() && (t->dim() != 1 || t->size(0) != input.size(1)))
      return "a parameter that is not one number per channel";
  }
  return why_not_parameters(batch_norm_op, input, {&weight, &bias, &mean, &var});
}

const char* why_not_batch_norm(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
                               const Tensor& weight, const Tensor& bias, bool training) {
  if (const char* reason = why_not(batch_norm_op, input)) return reason;
  if (input.dim() < 2) return "an input of fewer than two dimensions";
  if (input.numel() == 0) return "an empty input";
  if (running_mean.defined() != running_var.defined()) return "one running statistic without the other";
  if (!training && !running_mean.defined()) return "no running statistics";
  if (training && input.numel() == input.size(1)) return "one value per channel";
  return why_not_vectors(input, weight, bias, running_mean, running_var);
}

Tensor batch_norm(const Tensor& input, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                  const OptionalTensor& weight, const OptionalTensor& bias, bool training, double momentum,
                  double eps) {
  const char* reason = why_not_batch_norm(input, or_undefined(running_mean), or_undefined(running_var),
                                          or_undefined(weight), or_undefined(bias), training);
  return front(
      batch_norm_op, reason,
      [&] {
        if (!training) return eval_autograd(input, weight, bias, *running_mean, *running_var, eps);
        return std::get<0>(train_autograd(input, weight, bias, running_mean, running_var, momentum, eps));
      },
      [&] {
        return at::batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps,
                              at::globalContext().userEnabledCuDNN());
      });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "batch_norm(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor? weight, Tensor? "
      "bias, "
      "bool training, float momentum, float eps) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.impl("batch_norm", c10::DispatchKey::CompositeImplicitAutograd, batch_norm);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("batch_norm", batch_norm);
}

FASTNN_BIND(batchnorm, m) {
  bind_front<batch_norm>(
      m, "batch_norm",
      {"input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"});
}

}  // namespace
}  // namespace fastnn::ops
