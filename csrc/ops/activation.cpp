// Element-wise activations: front ops, private ops, autograd.
//
// This file is the live template of an op family:
//   schema -> kernels for CPU and Meta -> autograd -> front ops -> Python bindings.
// Each step is written once for all rows of FASTNN_ACTIVATIONS; activation_aten.cpp has torch's own formulas.
#include "fastnn/activation.h"

#include "fastnn/activation_table.h"
#include "ops/activation.h"
#include "ops/activation_aten.h"
#include "ops/bind.h"
#include "ops/front.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

int checked(int64_t kind) {
  TORCH_CHECK(kind >= 0 && kind < ActivationKind::kCount, "fastnn: no activation has number ", kind);
  return static_cast<int>(kind);
}

// y = f(x). x: any shape and strides; y: the strides that torch's own element-wise ops would give.
Tensor activation_cpu(const Tensor& x, int64_t kind, double a, double b) {
  Tensor y = fresh_like(x);
  const Tensor dense = with_layout_of(x, y);
  cpu::activation_forward({.kind = checked(kind),
                           .dtype = dtype_of(x),
                           .n = x.numel(),
                           .x = dense.const_data_ptr(),
                           .y = y.data_ptr(),
                           .a = a,
                           .b = b});
  return y;
}

// dx = dy * f'(x), from `saved`, which is x or y as the table says.
Tensor activation_backward_cpu(const Tensor& dy, const Tensor& saved, int64_t kind, double a, double b) {
  check_like(dy, saved, "dy");
  Tensor dx = fresh_like(saved);
  const bool broadcast = is_broadcast_number(dy);
  const Tensor dense_dy = broadcast ? dy : with_layout_of(dy, dx), dense_saved = with_layout_of(saved, dx);
  cpu::activation_backward({.kind = checked(kind),
                            .dtype = dtype_of(saved),
                            .n = saved.numel(),
                            .dy = dense_dy.const_data_ptr(),
                            .dy_broadcast = broadcast,
                            .saved = dense_saved.const_data_ptr(),
                            .dx = dx.data_ptr(),
                            .a = a,
                            .b = b});
  return dx;
}

Tensor activation_meta(const Tensor& x, int64_t, double, double) {
  return at::empty_like(x);
}
Tensor activation_backward_meta(const Tensor&, const Tensor& saved, int64_t, double, double) {
  return at::empty_like(saved);
}

// --- autograd --------------------------------------------------------------------------------------------

Tensor activation(const Tensor& x, int64_t kind, double a, double b) {
  static const auto op = handle<Tensor(const Tensor&, int64_t, double, double)>("fastnn::_activation");
  if (runs_directly(x)) return activation_cpu(x, kind, a, b);
  return op.call(x, kind, a, b);
}

Tensor activation_backward(const Tensor& dy, const Tensor& saved, int64_t kind, double a, double b) {
  static const auto op =
      handle<Tensor(const Tensor&, const Tensor&, int64_t, double, double)>("fastnn::_activation_backward");
  const bool direct = !records(dy, saved) && runs_directly(dy) && runs_directly(saved);
  if (direct) return activation_backward_cpu(dy, saved, kind, a, b);
  return op.call(dy, saved, kind, a, b);
}

void run_in_place(const Tensor& x, int64_t kind, double a, double b) {
  cpu::activation_forward({.kind = checked(kind),
                           .dtype = dtype_of(x),
                           .n = x.numel(),
                           .x = x.const_data_ptr(),
                           .y = x.data_ptr(),
                           .a = a,
                           .b = b});
}

struct ActivationGradient {
  static constexpr const char* kName = "ActivationBackward";
  static constexpr int kInputs = 1, kSaved = 1;
  using Arguments = std::tuple<int64_t, double, double>;
  static variable_list backward(const variable_list& dy, const Saved<1>& saved, const Wanted<1>&,
                                int64_t kind, double a, double b) {
    return {activation_backward(dy[0], saved[0], kind, a, b)};
  }
};

Tensor activation_autograd(const Tensor& x, int64_t kind, double a, double b) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return activation(x, kind, a, b);
  };
  if (!records(x)) return run();
  const auto node = make_node<ActivationGradient>({kind, a, b}, x);
  const Tensor y = run();
  node->output(y).keep(0, kActivationInfo[checked(kind)].saves_y(dtype_of(x)) ? y : x);
  return y;
}

}  // namespace

Tensor activation_in_place(const Tensor& x, int64_t kind, double a, double b) {
  if (!records(x)) {
    run_in_place(x, kind, a, b);
    if (!x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
    return x;
  }
  const auto node = make_node<ActivationGradient>({kind, a, b}, x);
  const bool saves_y = kActivationInfo[checked(kind)].saves_y(dtype_of(x));
  if (!saves_y) node->keep(0, x.detach().clone());
  run_in_place(x, kind, a, b);
  node->overwritten(x);
  if (saves_y) node->keep(0, x);
  return x;
}

namespace {

// Under create_graph the backward itself is differentiated: torch's own formula, which is made of ops that
// can be.
Tensor activation_backward_autograd(const Tensor& dy, const Tensor& saved, int64_t kind, double a, double b) {
  if (records(dy, saved)) {
    const bool saves_y = kActivationInfo[checked(kind)].saves_y(dtype_of(saved));
    return activation_aten(checked(kind)).backward(dy, saved, saves_y, a, b);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return activation_backward(dy, saved, kind, a, b);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_activation(Tensor x, int kind, float a, float b) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("_activation_backward(Tensor dy, Tensor saved, int kind, float a, float b) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_activation", activation_cpu);
  m.impl("_activation_backward", activation_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_activation", activation_meta);
  m.impl("_activation_backward", activation_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_activation", activation_autograd);
  m.impl("_activation_backward", activation_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

// By position in FASTNN_ACTIVATIONS. torch's autocast computes softplus in float32 on CUDA.
const Op activation_ops[] = {
#define FASTNN_OP(name, Struct) \
  {#name, "_activation", kFloating, /*autocast=*/ActivationKind::k##Struct == ActivationKind::kSoftplus},
    FASTNN_ACTIVATIONS(FASTNN_OP)
#undef FASTNN_OP
};

const char* why_not_activation(int kind, const Tensor& x, double a, double b) {
  if (const char* reason = why_not(activation_ops[kind], x)) return reason;
  return kActivationInfo[kind].supports(a, b) ? nullptr : "no kernel for this parameter";
}

Tensor out_of_place(int kind, const Tensor& input, double a, double b) {
  // torch's log_sigmoid is contiguous whatever the input.
  const Tensor x = kind == ActivationKind::kLogsigmoid ? input.contiguous() : input;
  return front(
      activation_ops[kind], why_not_activation(kind, x, a, b),
      [&] { return activation_autograd(x, kind, a, b); },
      [&] { return activation_aten(kind).forward(x, a, b); });
}

const char* why_not_in_place(int kind, const Tensor& x, double a, double b) {
  const char* reason = why_not_activation(kind, x, a, b);
  return reason ? reason : why_not_overwrite(x);
}

Tensor in_place(int kind, Tensor x, double a, double b) {
  const auto torch = [&] {
    // torch's threshold_ alone takes overlapping tensors.
    if (kind == ActivationKind::kThreshold) return at::threshold_(x, a, b);
    // The graph may need what is overwritten.
    return x.copy_(activation_aten(kind).forward(records(x) ? x.clone() : x, a, b));
  };
  return front(
      activation_ops[kind], why_not_in_place(kind, x, a, b),
      [&] { return activation_in_place(x, kind, a, b); }, torch);
}

// The front ops as C++ functions with as many parameters as the activation has.
template <int kind, bool inplace>
struct Front {
  static Tensor call(const Tensor& input, double a, double b) {
    return inplace ? in_place(kind, input, a, b) : out_of_place(kind, input, a, b);
  }
  static Tensor call0(const Tensor& input) { return call(input, 0, 0); }
  static Tensor call1(const Tensor& input, double a) { return call(input, a, 0); }
  static constexpr auto function() {
    constexpr auto& info = kActivationInfo[kind];
    if constexpr (info.b.name != nullptr) {
      return &call;
    } else if constexpr (info.a.name != nullptr) {
      return &call1;
    } else {
      return &call0;
    }
  }
  static void add(pybind11::module_& m) {
    constexpr auto& info = kActivationInfo[kind];
    bind_front<function()>(m, std::string(info.name) + (inplace ? "_" : ""),
                           {"input", info.a.name, info.b.name});
  }
};

std::string schema(const ActivationInfo& info) {
  std::string text = std::string(info.name) + "(Tensor input";
  for (const auto& p : {info.a, info.b}) {
    if (p.name) text += std::string(", float ") + p.name + "=" + std::to_string(p.value);
  }
  return text + ") -> Tensor";
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  // An implementation in the definition is CompositeImplicitAutograd: compilers decompose it.
#define FASTNN_DEFINE(name, Struct)                                                                \
  m.def(schema(kActivationInfo[ActivationKind::k##Struct]).c_str(), {at::Tag::pt2_compliant_tag}); \
  m.impl(#name, c10::DispatchKey::CompositeImplicitAutograd,                                       \
         Front<ActivationKind::k##Struct, false>::function());
  FASTNN_ACTIVATIONS(FASTNN_DEFINE)
#undef FASTNN_DEFINE
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
#define FASTNN_IMPLEMENT(name, Struct) m.impl(#name, Front<ActivationKind::k##Struct, false>::function());
  FASTNN_ACTIVATIONS(FASTNN_IMPLEMENT)
#undef FASTNN_IMPLEMENT
}

FASTNN_BIND(activation, m) {
#define FASTNN_FUNCTION(name, Struct)              \
  Front<ActivationKind::k##Struct, false>::add(m); \
  Front<ActivationKind::k##Struct, true>::add(m);
  FASTNN_ACTIVATIONS(FASTNN_FUNCTION)
#undef FASTNN_FUNCTION
}

}  // namespace
}  // namespace fastnn::ops
