// Layer and RMS norm: front ops, one private op with a flag, its backward, autograd.
#include "ops/normalization.h"

#include "fastnn/normalization.h"
#include "ops/node.h"
#include "ops/parameters.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

// y, and mean and 1 / sqrt(var + eps) of each row; no mean with rms.
Tensors layer_norm_cpu(const Tensor& x, int64_t dims, const OptionalTensor& weight,
                       const OptionalTensor& bias, double eps, bool rms) {
  const Rows r = rows_of(x, dims);
  const auto type = compute_type(x);
  const Tensor dense = x.contiguous(), w = vector_of(weight, r.length, type),
               b = vector_of(bias, r.length, type);
  const auto leading = x.sizes().slice(0, x.dim() - dims);
  Tensor y = empty(x.sizes(), x.scalar_type());
  Tensor mean = rms ? empty({0}, type) : empty(leading, type), rstd = empty(leading, type);
  cpu::layer_norm_forward({.dtype = dtype_of(x),
                           .rows = r.rows,
                           .length = r.length,
                           .rms = rms,
                           .x = dense.const_data_ptr(),
                           .y = y.data_ptr(),
                           .weight = data(w),
                           .bias = data(b),
                           .mean = rms ? nullptr : mean.data_ptr(),
                           .rstd = rstd.data_ptr(),
                           .eps = eps});
  return {y.contiguous(output_format(x, rms)), mean, rstd};
}

Tensors layer_norm_backward_cpu(const Tensor& dy, const Tensor& x, int64_t dims, const OptionalTensor& weight,
                                const Tensor& mean, const Tensor& rstd, double, bool rms,
                                std::array<bool, 3> mask) {
  const Rows r = rows_of(x, dims);
  const auto type = compute_type(x);
  check_like(dy, x, "dy");
  const Tensor dense = x.contiguous(), dense_dy = dy.contiguous(), w = vector_of(weight, r.length, type);
  const Tensor m = rms ? Tensor() : vector_of(mean, r.rows, type), s = vector_of(rstd, r.rows, type);
  const auto shape = x.sizes().slice(x.dim() - dims);
  Tensor dx = mask[0] ? empty(x.sizes(), x.scalar_type()) : empty({0}, x.scalar_type());
  const auto parameter = [&](bool wants) { return wants ? empty(shape, type) : empty({0}, type); };
  Tensor dw = parameter(mask[1]), db = parameter(mask[2]);
  cpu::layer_norm_backward({.dtype = dtype_of(x),
                            .rows = r.rows,
                            .length = r.length,
                            .rms = rms,
                            .dy = dense_dy.const_data_ptr(),
                            .x = dense.const_data_ptr(),
                            .weight = data(w),
                            .mean = data(m),
                            .rstd = data(s),
                            .dx = mask[0] ? dx.data_ptr() : nullptr,
                            .dweight = mask[1] ? dw.data_ptr() : nullptr,
                            .dbias = mask[2] ? db.data_ptr() : nullptr});
  const auto wanted = parameter_type(x, weight);
  if (wanted == type) return {dx, dw, db};
  return {dx, dw.to(wanted), db.to(wanted)};
}

Tensors layer_norm_meta(const Tensor& x, int64_t dims, const OptionalTensor&, const OptionalTensor&, double,
                        bool rms) {
  const auto options = x.options().dtype(compute_type(x));
  const auto leading = x.sym_sizes().slice(0, x.dim() - dims);
  return {at::empty_symint(x.sym_sizes(), x.options(), output_format(x, rms)),
          rms ? at::empty({0}, options) : at::empty_symint(leading, options),
          at::empty_symint(leading, options)};
}

Tensors layer_norm_backward_meta(const Tensor&, const Tensor& x, int64_t dims, const OptionalTensor& weight,
                                 const Tensor&, const Tensor&, double, bool, std::array<bool, 3> mask) {
  const auto options = x.options().dtype(parameter_type(x, weight));
  const auto parameter = [&](bool wanted) {
    return wanted ? at::empty_symint(x.sym_sizes().slice(x.dim() - dims), options) : at::empty({0}, options);
  };
  return {mask[0] ? at::empty_symint(x.sym_sizes(), x.options()) : at::empty({0}, x.options()),
          parameter(mask[1]), parameter(mask[2])};
}

// --- autograd --------------------------------------------------------------------------------------------

Tensors call_layer_norm(const Tensor& x, int64_t dims, const OptionalTensor& weight,
                        const OptionalTensor& bias, double eps, bool rms) {
  static const auto op = handle<decltype(layer_norm_cpu)>("fastnn::_layer_norm");
  return op.call(x, dims, weight, bias, eps, rms);
}

Tensors call_layer_norm_backward(const Tensor& dy, const Tensor& x, int64_t dims,
                                 const OptionalTensor& weight, const Tensor& mean, const Tensor& rstd,
                                 double eps, bool rms, std::array<bool, 3> mask) {
  static const auto op = handle<decltype(layer_norm_backward_cpu)>("fastnn::_layer_norm_backward");
  return op.call(dy, x, dims, weight, mean, rstd, eps, rms, mask);
}

struct LayerNormGradient {
  static constexpr const char* kName = "LayerNormBackward";
  static constexpr int kInputs = 3, kSaved = 4;
  using Arguments = std::tuple<int64_t, double, bool>;
  static variable_list backward(const variable_list& dy, const Saved<4>& saved, const Wanted<3>& wanted,
                                int64_t dims, double eps, bool rms) {
    const auto& [x, weight, mean, rstd] = saved;
    auto [dx, dw, db] = call_layer_norm_backward(dy[0], x, dims, weight, mean, rstd, eps, rms, wanted);
    return {wanted[0] ? dx : Tensor(), wanted[1] ? dw : Tensor(), wanted[2] ? db : Tensor()};
  }
};

Tensors layer_norm_autograd(const Tensor& x, int64_t dims, const OptionalTensor& weight,
                            const OptionalTensor& bias, double eps, bool rms) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_layer_norm(x, dims, weight, bias, eps, rms);
  };
  if (!records(x, weight, bias)) return run();
  const auto node = make_node<LayerNormGradient>({dims, eps, rms}, x, weight, bias);
  auto [y, mean, rstd] = run();
  node->output(y).keep(0, x).keep(1, or_undefined(weight)).keep(2, mean).keep(3, rstd);
  return {y, mean, rstd};
}

Tensors layer_norm_backward_autograd(const Tensor& dy, const Tensor& x, int64_t dims,
                                     const OptionalTensor& weight, const Tensor& mean, const Tensor& rstd,
                                     double eps, bool rms, std::array<bool, 3> mask) {
  if (!records(dy, x, weight)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_layer_norm_backward(dy, x, dims, weight, mean, rstd, eps, rms, mask);
  }
  std::vector<int64_t> inner(dims);
  for (int64_t i = 0; i < dims; ++i) inner[i] = i - dims;
  const auto type = compute_type(x), wanted = parameter_type(x, weight);
  const Tensor slope = dy.to(type);
  const Normalised n(x.to(type), weight && weight->defined() ? slope * weight->to(type) : slope, inner, eps,
                     rms);
  const auto shape = x.sym_sizes().slice(x.dim() - dims);
  const auto parameter = [&](bool wants, const Tensor& t) {
    return wants ? t.sum_to_size_symint(shape).to(wanted) : at::empty({0}, x.options().dtype(wanted));
  };
  return {mask[0] ? n.gradient.to(x.scalar_type()) : at::empty({0}, x.options()),
          parameter(mask[1], slope * n.value), parameter(mask[2], slope)};
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_layer_norm(Tensor input, int dims, Tensor? weight, Tensor? bias, float eps, bool rms) -> (Tensor, "
      "Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_layer_norm_backward(Tensor dy, Tensor input, int dims, Tensor? weight, Tensor mean, Tensor rstd, "
      "float "
      "eps, bool rms, bool[3] mask) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_layer_norm", layer_norm_cpu);
  m.impl("_layer_norm_backward", layer_norm_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_layer_norm", layer_norm_meta);
  m.impl("_layer_norm_backward", layer_norm_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_layer_norm", layer_norm_autograd);
  m.impl("_layer_norm_backward", layer_norm_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

const Op layer_norm_op("layer_norm", "_layer_norm", kFloating);
const Op rms_norm_op("rms_norm", "_layer_norm", kFloating);

const char* why_not_norm(const Op& op, const Tensor& input, c10::SymIntArrayRef shape, const Tensor& weight,
                         const Tensor& bias) {
  if (const char* reason = why_not(op, input)) return reason;
  const int64_t dims = static_cast<int64_t>(shape.size());
  if (dims == 0 || dims > input.dim()) return "normalized_shape has no or too many dimensions";
  if (input.numel() == 0) return "an empty input";
  for (int64_t i = 0; i < dims; ++i) {
    if (shape[i] != input.size(input.dim() - dims + i))
      return "an input of another shape than normalized_shape";
  }
  for (const Tensor* t : {&weight, &bias}) {
    if (t->defined() && t->sym_sizes() != shape) return "a parameter of another shape than normalized_shape";
  }
  return why_not_parameters(op, input, {&weight, &bias});
}

Tensor layer_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
                  const OptionalTensor& bias, double eps) {
  const char* reason =
      why_not_norm(layer_norm_op, input, normalized_shape, or_undefined(weight), or_undefined(bias));
  const int64_t dims = static_cast<int64_t>(normalized_shape.size());
  return front(
      layer_norm_op, reason,
      [&] { return std::get<0>(layer_norm_autograd(input, dims, weight, bias, eps, false)); },
      [&] {
        return at::layer_norm_symint(input, normalized_shape, weight, bias, eps,
                                     at::globalContext().userEnabledCuDNN());
      });
}

Tensor rms_norm(const Tensor& input, c10::SymIntArrayRef normalized_shape, const OptionalTensor& weight,
                std::optional<double> eps) {
  const char* reason = why_not_norm(rms_norm_op, input, normalized_shape, or_undefined(weight), Tensor());
  const int64_t dims = static_cast<int64_t>(normalized_shape.size());
  return front(
      rms_norm_op, reason,
      [&] {
        const double unit = input.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                               : std::numeric_limits<float>::epsilon();
        return std::get<0>(layer_norm_autograd(input, dims, weight, std::nullopt, eps.value_or(unit), true));
      },
      [&] { return at::rms_norm_symint(input, normalized_shape, weight, eps); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.impl("layer_norm", c10::DispatchKey::CompositeImplicitAutograd, layer_norm);
  m.def("rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, float? eps) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.impl("rms_norm", c10::DispatchKey::CompositeImplicitAutograd, rms_norm);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("layer_norm", layer_norm);
  m.impl("rms_norm", rms_norm);
}

FASTNN_BIND(normalization, m) {
  m.def("layer_norm", torch::wrap_pybind_function_no_gil(layer_norm));
  m.def("rms_norm", torch::wrap_pybind_function_no_gil(rms_norm));
}

}  // namespace
}  // namespace fastnn::ops
