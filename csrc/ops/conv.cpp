// Convolution and transposed convolution in one to three dimensions: front ops, private ops, autograd.
#include "ops/conv.h"

#include "ops/front.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

// The launchers of csrc/cpu/conv.cpp.
struct CpuConv {
  static void record(const char* algorithm) { record_algorithm(algorithm); }
  static const char* run(const ConvForwardParams& p, const Tensor&) { return cpu::conv_forward(p); }
  static const char* run(const ConvBackwardDataParams& p, const Tensor&) {
    return cpu::conv_backward_data(p);
  }
  static const char* run(const ConvBackwardWeightParams& p, const Tensor&) {
    return cpu::conv_backward_weight(p);
  }
  static void run(const ConvBackwardBiasParams& p, const Tensor&) { cpu::conv_backward_bias(p); }
};

Tensor conv_meta(const Tensor& x, const Tensor& w, const std::optional<Tensor>&, IntArrayRef stride,
                 IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                 int64_t groups) {
  const auto shape = output_shape(x, w, stride, padding, dilation, transposed, output_padding, groups);
  return at::empty_symint(shape, x.options(), format_of(x, w, groups));
}

Tensors conv_backward_meta(const Tensor& dy, const Tensor& x, const Tensor& w, IntArrayRef, IntArrayRef,
                           IntArrayRef, bool, IntArrayRef, int64_t groups, std::array<bool, 3> output_mask) {
  Tensor dx, dw, db;
  if (output_mask[0]) dx = at::empty_symint(x.sym_sizes(), x.options(), format_of(x, w, groups));
  if (output_mask[1]) dw = at::empty_symint(w.sym_sizes(), w.options(), w.suggest_memory_format());
  if (output_mask[2]) db = at::empty_symint({dy.sym_size(1)}, dy.options());
  return {dx, dw, db};
}

// --- autograd --------------------------------------------------------------------------------------------

Tensor conv(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, IntArrayRef stride,
            IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
            int64_t groups) {
  static const auto op = handle<decltype(conv)>("fastnn::_conv");
  return op.call(x, w, b, stride, padding, dilation, transposed, output_padding, groups);
}

Tensors conv_backward(const Tensor& dy, const Tensor& x, const Tensor& w, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                      int64_t groups, std::array<bool, 3> output_mask) {
  static const auto op = handle<decltype(conv_backward)>("fastnn::_conv_backward");
  return op.call(dy, x, w, stride, padding, dilation, transposed, output_padding, groups, output_mask);
}

struct ConvGradient {
  static constexpr const char* kName = "ConvBackward";
  static constexpr int kInputs = 3, kSaved = 2;
  using Ints = std::vector<int64_t>;
  using Arguments = std::tuple<Ints, Ints, Ints, bool, Ints, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<2>& saved, const Wanted<3>& wanted,
                                IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                bool transposed, IntArrayRef output_padding, int64_t groups) {
    auto [dx, dw, db] = conv_backward(dy[0], saved[0], saved[1], stride, padding, dilation, transposed,
                                      output_padding, groups, wanted);
    return {dx, dw, db};
  }
};

Tensor conv_autograd(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, IntArrayRef stride,
                     IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                     int64_t groups) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return conv(x, w, b, stride, padding, dilation, transposed, output_padding, groups);
  };
  if (!records(x, w, b)) return run();
  const auto node = make_node<ConvGradient>(
      {stride.vec(), padding.vec(), dilation.vec(), transposed, output_padding.vec(), groups}, x, w, b);
  const Tensor y = run();
  node->output(y).keep(0, x).keep(1, w);
  return y;
}

// Under create_graph the backward itself is differentiated: torch's own op, which can be.
Tensors conv_backward_autograd(const Tensor& dy, const Tensor& x, const Tensor& w, IntArrayRef stride,
                               IntArrayRef padding, IntArrayRef dilation, bool transposed,
                               IntArrayRef output_padding, int64_t groups, std::array<bool, 3> output_mask) {
  if (records(dy, x, w)) {
    const int64_t bias[] = {dy.size(1)};
    return at::convolution_backward(dy, x, w, bias, stride, padding, dilation, transposed, output_padding,
                                    groups, output_mask);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return conv_backward(dy, x, w, stride, padding, dilation, transposed, output_padding, groups, output_mask);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_conv(Tensor x, Tensor w, Tensor? b, int[] stride, int[] padding, int[] dilation, bool transposed, "
      "int[] output_padding, int groups) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_conv_backward(Tensor dy, Tensor x, Tensor w, int[] stride, int[] padding, int[] dilation, bool "
      "transposed, "
      "int[] output_padding, int groups, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_conv", conv_by<CpuConv>);
  m.impl("_conv_backward", conv_backward_by<CpuConv>);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_conv", conv_meta);
  m.impl("_conv_backward", conv_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_conv", conv_autograd);
  m.impl("_conv_backward", conv_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

const Op conv_ops[] = {{"conv1d", "_conv", kFloatDouble | kProduct, true},
                       {"conv2d", "_conv", kFloatDouble | kProduct, true},
                       {"conv3d", "_conv", kFloatDouble | kProduct, true}};
const Op conv_transpose_ops[] = {{"conv_transpose1d", "_conv", kFloatDouble | kProduct, true},
                                 {"conv_transpose2d", "_conv", kFloatDouble | kProduct, true},
                                 {"conv_transpose3d", "_conv", kFloatDouble | kProduct, true}};

// Arguments of one call; a list of one element stands for all dimensions.
struct Call {
  const Tensor &input, &weight;
  const std::optional<Tensor>& bias;
  bool transposed;
  int64_t nd, groups;
  c10::SmallVector<int64_t, 3> stride, padding, dilation, output_padding;

  Call(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, bool transposed,
       int64_t nd, int64_t groups, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
       IntArrayRef output_padding)
      : input(input),
        weight(weight),
        bias(bias),
        transposed(transposed),
        nd(nd),
        groups(groups),
        stride(expand(stride)),
        padding(expand(padding)),
        dilation(expand(dilation)),
        output_padding(expand(output_padding)) {}

  c10::SmallVector<int64_t, 3> expand(IntArrayRef list) const {
    if (list.size() == 1) return c10::SmallVector<int64_t, 3>(nd, list[0]);
    return c10::SmallVector<int64_t, 3>(list.begin(), list.end());
  }

  // The shapes are those of a convolution, with something to compute but for an empty batch. Whatever is not
  // gets torch's op: it knows the exotic cases and has the error texts.
  bool usual() const {
    const auto size = static_cast<size_t>(nd);
    if (stride.size() != size || padding.size() != size || dilation.size() != size ||
        output_padding.size() != size) {
      return false;
    }
    const bool batched = input.dim() == nd + 2;
    if (weight.dim() != nd + 2 || (!batched && input.dim() != nd + 1) || groups < 1 || weight.numel() == 0)
      return false;
    const int64_t channels = input.size(batched ? 1 : 0), rows = weight.size(0),
                  cols = weight.size(1) * groups;
    if (rows % groups != 0 || channels != (transposed ? rows : cols)) return false;
    if (bias && bias->defined() && (bias->dim() != 1 || bias->size(0) != (transposed ? cols : rows)))
      return false;
    for (int64_t i = 0; i < nd; ++i) {
      const int64_t in = input.size((batched ? 2 : 1) + i);
      if (in < 1 || stride[i] < 1 || padding[i] < 0 || dilation[i] < 1 || output_padding[i] < 0) return false;
      if (output_padding[i] > 0 && output_padding[i] >= std::max(stride[i], dilation[i])) return false;
      const int64_t reach = (weight.size(2 + i) - 1) * dilation[i] + 1;
      if (transposed ? (in - 1) * stride[i] + reach + output_padding[i] <= 2 * padding[i]
                     : in + 2 * padding[i] < reach) {
        return false;
      }
    }
    return true;
  }

  Tensor native() const {
    const bool batched = input.dim() == nd + 2;
    const Tensor y = conv_autograd(batched ? input : input.unsqueeze(0), weight, bias, stride, padding,
                                   dilation, transposed, output_padding, groups);
    return batched ? y : y.squeeze(0);
  }

  template <class Torch>
  Tensor run(const Torch& torch) const {
    const Op& op = (transposed ? conv_transpose_ops : conv_ops)[nd - 1];
    const char* reason = why_not(op, input, weight, bias ? *bias : Tensor());
    if (reason == nullptr && !usual()) reason = "unusual shapes or arguments";
    // torch gets the lists in full, as its own Python functions give them.
    return front(op, reason, [&] { return native(); }, [&] { return torch(*this); });
  }
};

#define FASTNN_CONV(ND)                                                                                      \
  Tensor conv##ND##d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,           \
                     IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups) {        \
    const Call call(input, weight, bias, false, ND, groups, stride, padding, dilation, {0});                 \
    return call.run([&](const Call& c) {                                                                     \
      return at::conv##ND##d(input, weight, bias, c.stride, c.padding, c.dilation, groups);                  \
    });                                                                                                      \
  }                                                                                                          \
  Tensor conv_transpose##ND##d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, \
                               IntArrayRef stride, IntArrayRef padding, IntArrayRef output_padding,          \
                               int64_t groups, IntArrayRef dilation) {                                       \
    const Call call(input, weight, bias, true, ND, groups, stride, padding, dilation, output_padding);       \
    return call.run([&](const Call& c) {                                                                     \
      return at::conv_transpose##ND##d(input, weight, bias, c.stride, c.padding, c.output_padding, groups,   \
                                       c.dilation);                                                          \
    });                                                                                                      \
  }
FASTNN_CONV(1)
FASTNN_CONV(2)
FASTNN_CONV(3)
#undef FASTNN_CONV

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  const auto define = [&m](const std::string& nd, auto conv, auto conv_transpose) {
    const std::string name = "conv" + nd + "d", transposed = "conv_transpose" + nd + "d",
                      ints = "int[" + nd + "] ";
    m.def((name + "(Tensor input, Tensor weight, Tensor? bias=None, " + ints + "stride=1, " + ints +
           "padding=0, " + ints + "dilation=1, int groups=1) -> Tensor")
              .c_str(),
          {at::Tag::pt2_compliant_tag});
    m.def((transposed + "(Tensor input, Tensor weight, Tensor? bias=None, " + ints + "stride=1, " + ints +
           "padding=0, " + ints + "output_padding=0, int groups=1, " + ints + "dilation=1) -> Tensor")
              .c_str(),
          {at::Tag::pt2_compliant_tag});
    m.impl(name.c_str(), c10::DispatchKey::CompositeImplicitAutograd, conv);
    m.impl(transposed.c_str(), c10::DispatchKey::CompositeImplicitAutograd, conv_transpose);
  };
  define("1", conv1d, conv_transpose1d);
  define("2", conv2d, conv_transpose2d);
  define("3", conv3d, conv_transpose3d);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("conv1d", conv1d);
  m.impl("conv2d", conv2d);
  m.impl("conv3d", conv3d);
  m.impl("conv_transpose1d", conv_transpose1d);
  m.impl("conv_transpose2d", conv_transpose2d);
  m.impl("conv_transpose3d", conv_transpose3d);
}

// --- Python bindings ---------------------------------------------------------------------------------------

// An int or a sequence of them, as torch's own functions take.
struct Ints {
  c10::SmallVector<int64_t, 3> values;
  operator IntArrayRef() const { return values; }
};

}  // namespace
}  // namespace fastnn::ops

namespace pybind11::detail {
template <>
struct type_caster<fastnn::ops::Ints> {
  PYBIND11_TYPE_CASTER(fastnn::ops::Ints, const_name("int | Sequence[int]"));

  bool load(handle source, bool) {
    value.values.clear();
    if (!PyTuple_Check(source.ptr()) && !PyList_Check(source.ptr())) return append(source.ptr());
    for (const handle item : reinterpret_borrow<sequence>(source)) {
      if (!append(item.ptr())) return false;
    }
    return true;
  }

 private:
  bool append(PyObject* item) {
    if (!PyIndex_Check(item)) return false;
    const Py_ssize_t number = PyNumber_AsSsize_t(item, nullptr);
    if (number == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
    value.values.push_back(number);
    return true;
  }
};
}  // namespace pybind11::detail

namespace fastnn::ops {
namespace {

using ConvFront = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, IntArrayRef, IntArrayRef,
                         IntArrayRef, int64_t);
using ConvTransposeFront = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, IntArrayRef,
                                  IntArrayRef, IntArrayRef, int64_t, IntArrayRef);

FASTNN_BIND(conv, m) {
  namespace py = pybind11;
  const auto bind = [&m](const std::string& nd, ConvFront* conv, ConvTransposeFront* conv_transpose) {
    m.def(("conv" + nd + "d").c_str(),
          torch::wrap_pybind_function_no_gil(
              [conv](const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                     const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
                return conv(input, weight, bias, stride, padding, dilation, groups);
              }),
          py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("stride"), py::arg("padding"),
          py::arg("dilation"), py::arg("groups"));
    m.def(("conv_transpose" + nd + "d").c_str(),
          torch::wrap_pybind_function_no_gil(
              [conv_transpose](const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                               const Ints& stride, const Ints& padding, const Ints& output_padding,
                               int64_t groups, const Ints& dilation) {
                return conv_transpose(input, weight, bias, stride, padding, output_padding, groups, dilation);
              }),
          py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("stride"), py::arg("padding"),
          py::arg("output_padding"), py::arg("groups"), py::arg("dilation"));
  };
  bind("1", conv1d, conv_transpose1d);
  bind("2", conv2d, conv_transpose2d);
  bind("3", conv3d, conv_transpose3d);
}

}  // namespace
}  // namespace fastnn::ops
