// Max pooling: front ops max_pool{1,2,3}d and adaptive_max_pool{1,2,3}d, each with and without indices.
//
// Every rank and kind goes to one private op. Where a gradient is wanted it keeps one code per output, the
// position in its window: a byte for windows up to 256 taps, where torch keeps eight. Indices are made from
// codes.
#include "ops/pooling.h"

namespace fastnn::ops {
namespace {

using c10::SymInt;
using c10::SymIntArrayRef;

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

// y and codes: [N, C, OD, OH, OW] (leading dimensions as x has them); codes is empty unless asked for.
std::tuple<Tensor, Tensor> max_pool_cpu(const Tensor& x, at::IntArrayRef window, bool with_codes) {
  const Windows w = Windows::from(window);
  const bool channels_last = keeps_channels_last(x, w, true);
  const PoolShape s = pool_shape(x.sizes(), w, channels_last);
  const auto size = w.output_size(x.sizes());
  const SymIntArrayRef sym_size = c10::fromIntArrayRefUnchecked(size);
  const Tensor dense = in_layout(x, w, channels_last);
  Tensor y = empty_pooled(sym_size, x.options(), w, channels_last);
  Tensor codes = with_codes ? empty_pooled(sym_size, x.options().dtype(code_type(s)), w, channels_last)
                            : at::empty({0}, x.options().dtype(at::kByte));
  record_algorithm(cpu::max_pool_forward({.dtype = dtype_of(x),
                                          .shape = s,
                                          .x = dense.const_data_ptr(),
                                          .y = y.data_ptr(),
                                          .codes = with_codes ? codes.data_ptr() : nullptr}));
  return {y, codes};
}

Tensor max_pool_backward_cpu(const Tensor& dy, const Tensor& codes, at::IntArrayRef input_size,
                             bool channels_last, at::IntArrayRef window) {
  const Windows w = Windows::from(window);
  check_sizes(dy, w.output_size(input_size), dy, "dy");
  check_sizes(codes, dy.sizes(), codes, "codes");
  const Tensor dense = in_layout(dy, w, channels_last), dense_codes = in_layout(codes, w, channels_last);
  Tensor dx = empty_pooled(c10::fromIntArrayRefUnchecked(input_size), dy.options(), w, channels_last);
  cpu::max_pool_backward({.dtype = dtype_of(dy),
                          .shape = pool_shape(input_size, w, channels_last),
                          .dy = dense.const_data_ptr(),
                          .codes = dense_codes.const_data_ptr(),
                          .dx = dx.data_ptr()});
  return dx;
}

Tensor max_pool_indices_cpu(const Tensor& codes, at::IntArrayRef input_size, at::IntArrayRef window) {
  const Windows w = Windows::from(window);
  check_sizes(codes, w.output_size(input_size), codes, "codes");
  const bool channels_last = keeps_channels_last(codes, w, true);
  const Tensor dense = in_layout(codes, w, channels_last);
  Tensor indices = empty_pooled(codes.sym_sizes(), codes.options().dtype(at::kLong), w, channels_last);
  cpu::max_pool_indices({.shape = pool_shape(input_size, w, channels_last),
                         .codes = dense.const_data_ptr(),
                         .indices = indices.data_ptr<int64_t>()});
  return indices;
}

// Adaptive windows have the sizes that the input's size gives them, so a symbolic size is settled here.
at::ScalarType symbolic_code_type(SymIntArrayRef input_size, const Windows& w) {
  int64_t taps = 1;
  for (int dim = static_cast<int>(3 - w.rank); dim < 3; ++dim) {
    taps *= w.adaptive()
                ? adaptive_kernel(input_size[input_size.size() - 3 + dim].guard_int(__FILE__, __LINE__),
                                  w.kernel[dim])
                : w.kernel[dim];
  }
  return taps <= 256 ? at::kByte : at::kInt;
}

std::tuple<Tensor, Tensor> max_pool_meta(const Tensor& x, at::IntArrayRef window, bool with_codes) {
  const Windows w = Windows::from(window);
  const bool channels_last = keeps_channels_last(x, w, true);
  const auto size = w.output_size(x.sym_sizes());
  Tensor codes = with_codes ? empty_pooled(size, x.options().dtype(symbolic_code_type(x.sym_sizes(), w)), w,
                                           channels_last)
                            : at::empty({0}, x.options().dtype(at::kByte));
  return {empty_pooled(size, x.options(), w, channels_last), codes};
}
Tensor max_pool_backward_meta(const Tensor& dy, const Tensor&, SymIntArrayRef input_size, bool channels_last,
                              at::IntArrayRef window) {
  return empty_pooled(input_size, dy.options(), Windows::from(window), channels_last);
}
Tensor max_pool_indices_meta(const Tensor& codes, SymIntArrayRef, at::IntArrayRef window) {
  const Windows w = Windows::from(window);
  return empty_pooled(codes.sym_sizes(), codes.options().dtype(at::kLong), w,
                      keeps_channels_last(codes, w, true));
}

// --- autograd --------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> max_pool(const Tensor& x, at::IntArrayRef window, bool with_codes) {
  static const auto op =
      handle<std::tuple<Tensor, Tensor>(const Tensor&, at::IntArrayRef, bool)>("fastnn::_max_pool");
  return op.call(x, window, with_codes);
}
Tensor max_pool_backward(const Tensor& dy, const Tensor& codes, SymIntArrayRef input_size, bool channels_last,
                         at::IntArrayRef window) {
  static const auto op = handle<Tensor(const Tensor&, const Tensor&, SymIntArrayRef, bool, at::IntArrayRef)>(
      "fastnn::_max_pool_backward");
  return op.call(dy, codes, input_size, channels_last, window);
}
Tensor max_pool_indices(const Tensor& codes, SymIntArrayRef input_size, at::IntArrayRef window) {
  static const auto op =
      handle<Tensor(const Tensor&, SymIntArrayRef, at::IntArrayRef)>("fastnn::_max_pool_indices");
  return op.call(codes, input_size, window);
}

struct MaxPoolGradient {
  static constexpr const char* kName = "MaxPoolBackward";
  static constexpr int kInputs = 1, kSaved = 1;
  using Arguments = std::tuple<std::vector<c10::SymInt>, bool, std::vector<int64_t>>;
  static variable_list backward(const variable_list& dy, const Saved<1>& saved, const Wanted<1>&,
                                SymIntArrayRef input_size, bool channels_last, at::IntArrayRef window) {
    return {max_pool_backward(dy[0], saved[0], input_size, channels_last, window)};
  }
};

std::tuple<Tensor, Tensor> max_pool_autograd(const Tensor& x, at::IntArrayRef window, bool with_codes) {
  const bool recording = records(x);
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return max_pool(x, window, with_codes || recording);
  };
  if (!recording) return run();
  const auto node = make_node<MaxPoolGradient>(
      {x.sym_sizes().vec(), keeps_channels_last(x, Windows::from(window), true), window.vec()}, x);
  auto [y, codes] = run();
  node->output(y).keep(0, codes);
  return {y, codes};
}

// The backward scatters dy, so its own derivative gathers.
struct MaxPoolSecondGradient {
  static constexpr const char* kName = "MaxPoolBackwardBackward";
  static constexpr int kInputs = 1, kSaved = 1;
  using Arguments = std::tuple<std::vector<c10::SymInt>, std::vector<int64_t>>;
  static variable_list backward(const variable_list& ddx, const Saved<1>& saved, const Wanted<1>&,
                                SymIntArrayRef input_size, at::IntArrayRef window) {
    const Tensor& codes = saved[0];
    const int64_t rank = Windows::from(window).rank;
    const Tensor indices = max_pool_indices(codes, input_size, window);
    return {ddx[0].flatten(-rank).gather(-1, indices.flatten(-rank)).view_symint(codes.sym_sizes())};
  }
};

Tensor max_pool_backward_autograd(const Tensor& dy, const Tensor& codes, SymIntArrayRef input_size,
                                  bool channels_last, at::IntArrayRef window) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return max_pool_backward(dy, codes, input_size, channels_last, window);
  };
  if (!records(dy)) return run();
  const auto node = make_node<MaxPoolSecondGradient>({input_size.vec(), window.vec()}, dy);
  const Tensor dx = run();
  node->output(dx).keep(0, codes);
  return dx;
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_max_pool(Tensor x, int[] window, bool with_codes) -> (Tensor, Tensor)",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "_max_pool_backward(Tensor dy, Tensor codes, SymInt[] input_size, bool channels_last, int[] window) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("_max_pool_indices(Tensor codes, SymInt[] input_size, int[] window) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_max_pool", max_pool_cpu);
  m.impl("_max_pool_backward", max_pool_backward_cpu);
  m.impl("_max_pool_indices", max_pool_indices_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_max_pool", max_pool_meta);
  m.impl("_max_pool_backward", max_pool_backward_meta);
  m.impl("_max_pool_indices", max_pool_indices_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_max_pool", max_pool_autograd);
  m.impl("_max_pool_backward", max_pool_backward_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

// torch's autocast computes every 3-d pooling in float32.
const Op kMaxPool[] = {Op("max_pool1d", "_max_pool", kFloating), Op("max_pool2d", "_max_pool", kFloating),
                       Op("max_pool3d", "_max_pool", kFloating, true)};
const Op kAdaptiveMaxPool[] = {Op("adaptive_max_pool1d", "_max_pool", kFloating),
                               Op("adaptive_max_pool2d", "_max_pool", kFloating),
                               Op("adaptive_max_pool3d", "_max_pool", kFloating, true)};

std::tuple<Tensor, Tensor> with_indices(const Tensor& x, const Windows& w) {
  auto [y, codes] = max_pool(x, w.list(), true);
  return {y, max_pool_indices(codes, x.sym_sizes(), w.list())};
}

// One picture of 3 dimensions with channels last looks like a batch of flat ones to torch, which refuses it.
bool refused(const Tensor& x, int64_t rank) {
  return rank == 3 && x.dim() == 4 && x.suggest_memory_format() != at::MemoryFormat::Contiguous;
}

template <int R>
Tensor max_pool_nd(const Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const Op& op = kMaxPool[R - 1];
  Windows w;
  const char* reason = why_not(op, input);
  if (reason == nullptr && refused(input, R)) reason = "a memory format that torch refuses";
  if (reason == nullptr) reason = read_fixed(input, R, kernel_size, stride, padding, dilation, ceil_mode, w);
  return front(
      op, reason, [&] { return std::get<0>(max_pool_autograd(input, w.list(), false)); },
      [&] {
        constexpr auto torch_op = R == 1 ? at::max_pool1d : R == 2 ? at::max_pool2d : at::max_pool3d;
        return torch_op(input, kernel_size, stride, padding, dilation, ceil_mode);
      });
}

template <int R>
std::tuple<Tensor, Tensor> max_pool_nd_with_indices(const Tensor& input, at::IntArrayRef kernel_size,
                                                    at::IntArrayRef stride, at::IntArrayRef padding,
                                                    at::IntArrayRef dilation, bool ceil_mode) {
  const Op& op = kMaxPool[R - 1];
  Windows w;
  const char* reason = why_not(op, input);
  if (reason == nullptr && refused(input, R)) reason = "a memory format that torch refuses";
  if (reason == nullptr) reason = read_fixed(input, R, kernel_size, stride, padding, dilation, ceil_mode, w);
  return front(
      op, reason, [&] { return with_indices(input, w); },
      [&] {
        constexpr auto torch_op = R == 1   ? at::max_pool1d_with_indices
                                  : R == 2 ? at::max_pool2d_with_indices
                                           : at::max_pool3d_with_indices;
        return torch_op(input, kernel_size, stride, padding, dilation, ceil_mode);
      });
}

template <int R>
std::tuple<Tensor, Tensor> torch_adaptive(const Tensor& input, at::IntArrayRef output_size) {
  constexpr auto torch_op = R == 1   ? at::adaptive_max_pool1d
                            : R == 2 ? at::adaptive_max_pool2d
                                     : at::adaptive_max_pool3d;
  return torch_op(input, output_size);
}

template <int R>
Tensor adaptive_max_pool_nd(const Tensor& input, at::IntArrayRef output_size) {
  const Op& op = kAdaptiveMaxPool[R - 1];
  Windows w;
  const char* reason = why_not(op, input);
  if (reason == nullptr) reason = read_adaptive(input, R, output_size, w);
  return front(
      op, reason, [&] { return std::get<0>(max_pool_autograd(input, w.list(), false)); },
      [&] { return std::get<0>(torch_adaptive<R>(input, output_size)); });
}

template <int R>
std::tuple<Tensor, Tensor> adaptive_max_pool_nd_with_indices(const Tensor& input,
                                                             at::IntArrayRef output_size) {
  const Op& op = kAdaptiveMaxPool[R - 1];
  Windows w;
  const char* reason = why_not(op, input);
  if (reason == nullptr) reason = read_adaptive(input, R, output_size, w);
  return front(
      op, reason, [&] { return with_indices(input, w); },
      [&] { return torch_adaptive<R>(input, output_size); });
}

template <int R>
void define(torch::Library& m) {
  const std::string n = std::to_string(R), ints = "int[" + n + "] ";
  const std::string fixed = "(Tensor input, " + ints + "kernel_size, " + ints + "stride=[], " + ints +
                            "padding=0, " + ints + "dilation=1, bool ceil_mode=False) -> ",
                    adaptive = "(Tensor input, " + ints + "output_size) -> ";
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  const auto add = [&](const std::string& schema) { m.def(torch::schema(schema.c_str()), tags); };
  add("max_pool" + n + "d" + fixed + "Tensor");
  add("max_pool" + n + "d_with_indices" + fixed + "(Tensor, Tensor)");
  add("adaptive_max_pool" + n + "d" + adaptive + "Tensor");
  add("adaptive_max_pool" + n + "d_with_indices" + adaptive + "(Tensor, Tensor)");
}

template <int R>
void implement(torch::Library& m) {
  const std::string n = std::to_string(R);
  m.impl(("max_pool" + n + "d").c_str(), max_pool_nd<R>);
  m.impl(("max_pool" + n + "d_with_indices").c_str(), max_pool_nd_with_indices<R>);
  m.impl(("adaptive_max_pool" + n + "d").c_str(), adaptive_max_pool_nd<R>);
  m.impl(("adaptive_max_pool" + n + "d_with_indices").c_str(), adaptive_max_pool_nd_with_indices<R>);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  define<1>(m);
  define<2>(m);
  define<3>(m);
}
TORCH_LIBRARY_IMPL(fastnn, CompositeImplicitAutograd, m) {
  implement<1>(m);
  implement<2>(m);
  implement<3>(m);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  implement<1>(m);
  implement<2>(m);
  implement<3>(m);
}

template <int R>
void bind(pybind11::module_& m) {
  const std::string n = std::to_string(R);
  const auto fixed = [&](const std::string& name, auto f) {
    m.def(name.c_str(), torch::wrap_pybind_function_no_gil(f), pybind11::arg("input"),
          pybind11::arg("kernel_size"), pybind11::arg("stride"), pybind11::arg("padding"),
          pybind11::arg("dilation"), pybind11::arg("ceil_mode"));
  };
  const auto adaptive = [&](const std::string& name, auto f) {
    m.def(name.c_str(), torch::wrap_pybind_function_no_gil(f), pybind11::arg("input"),
          pybind11::arg("output_size"));
  };
  fixed(
      "max_pool" + n + "d", +[](const Tensor& input, const IntList& kernel_size, const IntList& stride,
                                const IntList& padding, const IntList& dilation, bool ceil_mode) {
        return max_pool_nd<R>(input, kernel_size, stride, padding, dilation, ceil_mode);
      });
  fixed(
      "max_pool" + n + "d_with_indices",
      +[](const Tensor& input, const IntList& kernel_size, const IntList& stride, const IntList& padding,
          const IntList& dilation, bool ceil_mode) {
        return max_pool_nd_with_indices<R>(input, kernel_size, stride, padding, dilation, ceil_mode);
      });
  adaptive(
      "adaptive_max_pool" + n + "d", +[](const Tensor& input, const IntList& output_size) {
        return adaptive_max_pool_nd<R>(input, output_size);
      });
  adaptive(
      "adaptive_max_pool" + n + "d_with_indices", +[](const Tensor& input, const IntList& output_size) {
        return adaptive_max_pool_nd_with_indices<R>(input, output_size);
      });
}

FASTNN_BIND(pooling_max, m) {
  bind<1>(m);
  bind<2>(m);
  bind<3>(m);
}

}  // namespace
}  // namespace fastnn::ops
