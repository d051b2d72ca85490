// Average pooling: front ops avg_pool{1,2,3}d and adaptive_avg_pool{1,2,3}d.
//
// Both private ops are linear and each is the other's adjoint, so they differentiate into one another to any
// order and keep no tensor.
#include "ops/pooling.h"

namespace fastnn::ops {
namespace {

using c10::SymIntArrayRef;

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

// divisor 0: the number of elements in the window.
Tensor avg_pool_cpu(const Tensor& x, at::IntArrayRef window, bool count_include_pad, int64_t divisor) {
  const Windows w = Windows::from(window);
  const bool channels_last = keeps_channels_last(x, w, false);
  const auto size = w.output_size(x.sizes());
  const Tensor dense = in_layout(x, w, channels_last);
  Tensor y = empty_pooled(c10::fromIntArrayRefUnchecked(size), x.options(), w, channels_last);
  record_algorithm(cpu::avg_pool_forward({.dtype = dtype_of(x),
                                          .shape = pool_shape(x.sizes(), w, channels_last),
                                          .count_include_pad = count_include_pad,
                                          .divisor = divisor,
                                          .x = dense.const_data_ptr(),
                                          .y = y.data_ptr()}));
  return y;
}

Tensor avg_pool_backward_cpu(const Tensor& dy, at::IntArrayRef input_size, bool channels_last,
                             at::IntArrayRef window, bool count_include_pad, int64_t divisor) {
  const Windows w = Windows::from(window);
  check_sizes(dy, w.output_size(input_size), dy, "dy");
  const Tensor dense = in_layout(dy, w, channels_last);
  Tensor dx = empty_pooled(c10::fromIntArrayRefUnchecked(input_size), dy.options(), w, channels_last);
  cpu::avg_pool_backward({.dtype = dtype_of(dy),
                          .shape = pool_shape(input_size, w, channels_last),
                          .count_include_pad = count_include_pad,
                          .divisor = divisor,
                          .dy = dense.const_data_ptr(),
                          .dx = dx.data_ptr()});
  return dx;
}

Tensor avg_pool_meta(const Tensor& x, at::IntArrayRef window, bool, int64_t) {
  const Windows w = Windows::from(window);
  return empty_pooled(w.output_size(x.sym_sizes()), x.options(), w, keeps_channels_last(x, w, false));
}
Tensor avg_pool_backward_meta(const Tensor& dy, SymIntArrayRef input_size, bool channels_last,
                              at::IntArrayRef window, bool, int64_t) {
  return empty_pooled(input_size, dy.options(), Windows::from(window), channels_last);
}

// --- autograd --------------------------------------------------------------------------------------------

Tensor avg_pool(const Tensor& x, at::IntArrayRef window, bool count_include_pad, int64_t divisor) {
  static const auto op = handle<Tensor(const Tensor&, at::IntArrayRef, bool, int64_t)>("fastnn::_avg_pool");
  return op.call(x, window, count_include_pad, divisor);
}
Tensor avg_pool_backward(const Tensor& dy, SymIntArrayRef input_size, bool channels_last,
                         at::IntArrayRef window, bool count_include_pad, int64_t divisor) {
  static const auto op = handle<Tensor(const Tensor&, SymIntArrayRef, bool, at::IntArrayRef, bool, int64_t)>(
      "fastnn::_avg_pool_backward");
  return op.call(dy, input_size, channels_last, window, count_include_pad, divisor);
}

struct AvgPoolGradient {
  static constexpr const char* kName = "AvgPoolBackward";
  static constexpr int kInputs = 1, kSaved = 0;
  using Arguments = std::tuple<std::vector<c10::SymInt>, bool, std::vector<int64_t>, bool, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<0>&, const Wanted<1>&,
                                SymIntArrayRef input_size, bool channels_last, at::IntArrayRef window,
                                bool count_include_pad, int64_t divisor) {
    return {avg_pool_backward(dy[0], input_size, channels_last, window, count_include_pad, divisor)};
  }
};

Tensor avg_pool_autograd(const Tensor& x, at::IntArrayRef window, bool count_include_pad, int64_t divisor) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return avg_pool(x, window, count_include_pad, divisor);
  };
  if (!records(x)) return run();
  const auto node =
      make_node<AvgPoolGradient>({x.sym_sizes().vec(), keeps_channels_last(x, Windows::from(window), false),
                                  window.vec(), count_include_pad, divisor},
                                 x);
  const Tensor y = run();
  node->output(y);
  return y;
}

struct AvgPoolSecondGradient {
  static constexpr const char* kName = "AvgPoolBackwardBackward";
  static constexpr int kInputs = 1, kSaved = 0;
  using Arguments = std::tuple<std::vector<int64_t>, bool, int64_t>;
  static variable_list backward(const variable_list& ddx, const Saved<0>&, const Wanted<1>&,
                                at::IntArrayRef window, bool count_include_pad, int64_t divisor) {
    return {avg_pool(ddx[0], window, count_include_pad, divisor)};
  }
};

Tensor avg_pool_backward_autograd(const Tensor& dy, SymIntArrayRef input_size, bool channels_last,
                                  at::IntArrayRef window, bool count_include_pad, int64_t divisor) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return avg_pool_backward(dy, input_size, channels_last, window, count_include_pad, divisor);
  };
  if (!records(dy)) return run();
  const auto node = make_node<AvgPoolSecondGradient>({window.vec(), count_include_pad, divisor}, dy);
  const Tensor dx = run();
  node->output(dx);
  return dx;
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_avg_pool(Tensor x, int[] window, bool count_include_pad, int divisor) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "_avg_pool_backward(Tensor dy, SymInt[] input_size, bool channels_last, int[] window, bool "
      "count_include_pad, "
      "int divisor) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_avg_pool", avg_pool_cpu);
  m.impl("_avg_pool_backward", avg_pool_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_avg_pool", avg_pool_meta);
  m.impl("_avg_pool_backward", avg_pool_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_avg_pool", avg_pool_autograd);
  m.impl("_avg_pool_backward", avg_pool_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

// torch's autocast computes every 3-d pooling in float32; without it torch has no avg_pool3d of 16-bit
// numbers.
const Op kAvgPool[] = {Op("avg_pool1d", "_avg_pool", kFloating), Op("avg_pool2d", "_avg_pool", kFloating),
                       Op("avg_pool3d", "_avg_pool", kFloatDouble, true)};
const Op kAdaptiveAvgPool[] = {Op("adaptive_avg_pool1d", "_avg_pool", kFloating),
                               Op("adaptive_avg_pool2d", "_avg_pool", kFloating),
                               Op("adaptive_avg_pool3d", "_avg_pool", kFloating, true)};

template <int R>
Tensor avg_pool_nd(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                   at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                   std::optional<int64_t> divisor_override) {
  const Op& op = kAvgPool[R - 1];
  Windows w;
  const char* reason = why_not(op, input);
  if (reason == nullptr && divisor_override == 0) reason = "a divisor of zero";
  if (reason == nullptr) reason = read_fixed(input, R, kernel_size, stride, padding, {1}, ceil_mode, w);
  return front(
      op, reason,
      [&] { return avg_pool_autograd(input, w.list(), count_include_pad, divisor_override.value_or(0)); },
      [&] {
        if constexpr (R == 1)
          return at::avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad);
        if constexpr (R == 2)
          return at::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                                divisor_override);
        if constexpr (R == 3)
          return at::avg_pool3d(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                                divisor_override);
      });
}

Tensor avg_pool1d_front(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                        at::IntArrayRef padding, bool ceil_mode, bool count_include_pad) {
  return avg_pool_nd<1>(input, kernel_size, stride, padding, ceil_mode, count_include_pad, std::nullopt);
}

// Size: a list of int64_t, or of SymInt, which is a number unless a compiler traces.
template <int R, class Size>
Tensor adaptive_avg_pool_nd(const Tensor& input, Size output_size) {
  const Op& op = kAdaptiveAvgPool[R - 1];
  Windows w;
  const char* reason = why_not(op, input);
  if (reason == nullptr) {
    if constexpr (std::is_same_v<Size, SymIntArrayRef>) {
      reason = read_adaptive(input, R, C10_AS_INTARRAYREF_SLOW(output_size), w);
    } else {
      reason = read_adaptive(input, R, output_size, w);
    }
  }
  return front(
      op, reason, [&] { return avg_pool_autograd(input, w.list(), true, 0); },
      [&] {
        if constexpr (R == 1) return at::adaptive_avg_pool1d(input, output_size);
        if constexpr (R == 2) return at::adaptive_avg_pool2d_symint(input, output_size);
        if constexpr (R == 3) return at::adaptive_avg_pool3d_symint(input, output_size);
      });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(torch::schema("avg_pool1d(Tensor input, int[1] kernel_size, int[1] stride=[], int[1] padding=0, "
                      "bool ceil_mode=False, bool count_include_pad=True) -> Tensor"),
        tags);
  m.def(torch::schema(
            "avg_pool2d(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, "
            "bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor"),
        tags);
  m.def(torch::schema(
            "avg_pool3d(Tensor input, int[3] kernel_size, int[3] stride=[], int[3] padding=0, "
            "bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor"),
        tags);
  m.def(torch::schema("adaptive_avg_pool1d(Tensor input, int[1] output_size) -> Tensor"), tags);
  m.def(torch::schema("adaptive_avg_pool2d(Tensor input, SymInt[2] output_size) -> Tensor"), tags);
  m.def(torch::schema("adaptive_avg_pool3d(Tensor input, SymInt[3] output_size) -> Tensor"), tags);
}

void implement(torch::Library& m) {
  m.impl("avg_pool1d", avg_pool1d_front);
  m.impl("avg_pool2d", avg_pool_nd<2>);
  m.impl("avg_pool3d", avg_pool_nd<3>);
  m.impl("adaptive_avg_pool1d", adaptive_avg_pool_nd<1, at::IntArrayRef>);
  m.impl("adaptive_avg_pool2d", adaptive_avg_pool_nd<2, SymIntArrayRef>);
  m.impl("adaptive_avg_pool3d", adaptive_avg_pool_nd<3, SymIntArrayRef>);
}
TORCH_LIBRARY_IMPL(fastnn, CompositeImplicitAutograd, m) {
  implement(m);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  implement(m);
}

template <int R>
Tensor bound_avg_pool(const Tensor& input, const IntList& kernel_size, const IntList& stride,
                      const IntList& padding, bool ceil_mode, bool count_include_pad,
                      std::optional<int64_t> divisor_override) {
  return avg_pool_nd<R>(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
}
Tensor bound_avg_pool1d(const Tensor& input, const IntList& kernel_size, const IntList& stride,
                        const IntList& padding, bool ceil_mode, bool count_include_pad) {
  return avg_pool1d_front(input, kernel_size, stride, padding, ceil_mode, count_include_pad);
}
template <int R>
Tensor bound_adaptive_avg_pool(const Tensor& input, const IntList& output_size) {
  const at::IntArrayRef size = output_size;
  if constexpr (R == 1) return adaptive_avg_pool_nd<1>(input, size);
  if constexpr (R != 1) return adaptive_avg_pool_nd<R>(input, c10::fromIntArrayRefSlow(size));
}

FASTNN_BIND(pooling_avg, m) {
  namespace py = pybind11;
  m.def("avg_pool1d", torch::wrap_pybind_function_no_gil(bound_avg_pool1d), py::arg("input"),
        py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("ceil_mode"),
        py::arg("count_include_pad"));
  m.def("avg_pool2d", torch::wrap_pybind_function_no_gil(bound_avg_pool<2>), py::arg("input"),
        py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("ceil_mode"),
        py::arg("count_include_pad"), py::arg("divisor_override"));
  m.def("avg_pool3d", torch::wrap_pybind_function_no_gil(bound_avg_pool<3>), py::arg("input"),
        py::arg("kernel_size"), py::arg("stride"), py::arg("padding"), py::arg("ceil_mode"),
        py::arg("count_include_pad"), py::arg("divisor_override"));
  m.def("adaptive_avg_pool1d", torch::wrap_pybind_function_no_gil(bound_adaptive_avg_pool<1>),
        py::arg("input"), py::arg("output_size"));
  m.def("adaptive_avg_pool2d", torch::wrap_pybind_function_no_gil(bound_adaptive_avg_pool<2>),
        py::arg("input"), py::arg("output_size"));
  m.def("adaptive_avg_pool3d", torch::wrap_pybind_function_no_gil(bound_adaptive_avg_pool<3>),
        py::arg("input"), py::arg("output_size"));
}

}  // namespace
}  // namespace fastnn::ops
