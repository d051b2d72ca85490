// RReLU in training; in eval it is leaky_relu. Seed and offset decide the slopes, so the private ops are pure
// and backward draws the slopes again. They are not those of torch for the same seed.
#include <cmath>

#include "fastnn/activation.h"
#include "ops/bind.h"
#include "ops/front.h"
#include "ops/node.h"
#include "ops/random.h"

namespace fastnn::ops {
namespace {

// --- CPU and Meta kernels of the private ops -----------------------------------------------------------

// y = sign <= 0 ? r x : x; three tensors of one layout. Element i in memory takes word i.
void run(const Tensor& x, const Tensor& sign, const Tensor& y, double lower, double upper, int64_t seed,
         int64_t offset) {
  cpu::rrelu({.dtype = dtype_of(x),
              .n = x.numel(),
              .x = x.const_data_ptr(),
              .sign = sign.const_data_ptr(),
              .y = y.data_ptr(),
              .lower = lower,
              .upper = upper,
              .seed = static_cast<uint64_t>(seed),
              .offset = static_cast<uint64_t>(offset)});
}

Tensor rrelu_cpu(const Tensor& x, double lower, double upper, int64_t seed, int64_t offset) {
  const Tensor y = fresh_like(x), dense = with_layout_of(x, y);
  run(dense, dense, y, lower, upper, seed, offset);
  return y;
}

// dx = saved <= 0 ? r dy : dy. saved: x, or y where that has the same sign.
Tensor rrelu_backward_cpu(const Tensor& dy, const Tensor& saved, double lower, double upper, int64_t seed,
                          int64_t offset) {
  check_like(dy, saved, "dy");
  const Tensor dx = fresh_like(saved);
  run(with_layout_of(dy, dx), with_layout_of(saved, dx), dx, lower, upper, seed, offset);
  return dx;
}

Tensor rrelu_meta(const Tensor& x, double, double, int64_t, int64_t) {
  return at::empty_like(x);
}
Tensor rrelu_backward_meta(const Tensor&, const Tensor& saved, double, double, int64_t, int64_t) {
  return at::empty_like(saved);
}

// --- autograd --------------------------------------------------------------------------------------------

Tensor rrelu(const Tensor& x, double lower, double upper, int64_t seed, int64_t offset) {
  static const auto op = handle<decltype(rrelu_cpu)>("fastnn::_rrelu");
  if (runs_directly(x)) return rrelu_cpu(x, lower, upper, seed, offset);
  return op.call(x, lower, upper, seed, offset);
}

Tensor rrelu_backward(const Tensor& dy, const Tensor& saved, double lower, double upper, int64_t seed,
                      int64_t offset) {
  static const auto op = handle<decltype(rrelu_backward_cpu)>("fastnn::_rrelu_backward");
  const bool direct = !records(dy) && runs_directly(dy) && runs_directly(saved);
  if (direct) return rrelu_backward_cpu(dy, saved, lower, upper, seed, offset);
  return op.call(dy, saved, lower, upper, seed, offset);
}

// Of _rrelu with respect to x, and of _rrelu_backward with respect to dy: a product with the same slopes.
struct RreluGradient {
  static constexpr const char* kName = "RreluBackward";
  static constexpr int kInputs = 1, kSaved = 1;
  using Arguments = std::tuple<double, double, int64_t, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<1>& saved, const Wanted<1>&,
                                double lower, double upper, int64_t seed, int64_t offset) {
    return {rrelu_backward(dy[0], saved[0], lower, upper, seed, offset)};
  }
};

// y <= 0 where x <= 0: the float that the kernel takes is positive. With r = 0 minus infinity becomes NaN.
bool y_has_the_sign_of_x(double lower) {
  return static_cast<float>(lower) > 0;
}

Tensor rrelu_autograd(const Tensor& x, double lower, double upper, int64_t seed, int64_t offset) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return rrelu(x, lower, upper, seed, offset);
  };
  if (!records(x)) return run();
  const auto node = make_node<RreluGradient>({lower, upper, seed, offset}, x);
  const Tensor y = run();
  node->output(y).keep(0, y_has_the_sign_of_x(lower) ? y : x);
  return y;
}

// x = rrelu(x), which has been found free to be overwritten.
Tensor rrelu_in_place(const Tensor& x, double lower, double upper, int64_t seed, int64_t offset) {
  if (!records(x)) {
    run(x, x, x, lower, upper, seed, offset);
    if (!x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
    return x;
  }
  const auto node = make_node<RreluGradient>({lower, upper, seed, offset}, x);
  const bool saves_y = y_has_the_sign_of_x(lower);
  if (!saves_y) node->keep(0, x.detach().clone());
  run(x, x, x, lower, upper, seed, offset);
  node->overwritten(x);
  if (saves_y) node->keep(0, x);
  return x;
}

Tensor rrelu_backward_autograd(const Tensor& dy, const Tensor& saved, double lower, double upper,
                               int64_t seed, int64_t offset) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return rrelu_backward(dy, saved, lower, upper, seed, offset);
  };
  if (!records(dy)) return run();
  const auto node = make_node<RreluGradient>({lower, upper, seed, offset}, dy);
  const Tensor dx = run();
  node->output(dx).keep(0, saved);
  return dx;
}

// --- the same on CUDA: seed and offset lie in device memory, so that a captured graph draws anew ----------

// y = sign <= 0 ? r x : x; forward: sign is x. Linear in x, so it is its own gradient.
Tensor rrelu_by(const Tensor& x, const Tensor& sign, const Tensor& stream, double lower, double upper) {
  static const auto op =
      handle<Tensor(const Tensor&, const Tensor&, const Tensor&, double, double)>("fastnn::_rrelu_by");
  return op.call(x, sign, stream, lower, upper);
}

Tensor rrelu_by_meta(const Tensor&, const Tensor& sign, const Tensor&, double, double) {
  return at::empty_like(sign);
}

struct RreluByGradient {
  static constexpr const char* kName = "RreluBackward";
  static constexpr int kInputs = 1, kSaved = 2;
  using Arguments = std::tuple<double, double>;
  static variable_list backward(const variable_list& dy, const Saved<2>& saved, const Wanted<1>&,
                                double lower, double upper) {
    return {rrelu_by(dy[0], saved[0], saved[1], lower, upper)};
  }
};

Tensor rrelu_by_autograd(const Tensor& x, const Tensor& sign, const Tensor& stream, double lower,
                         double upper) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return rrelu_by(x, sign, stream, lower, upper);
  };
  if (!records(x)) return run();
  const auto node = make_node<RreluByGradient>({lower, upper}, x);
  const Tensor y = run();
  node->output(y).keep(0, x.is_same(sign) && y_has_the_sign_of_x(lower) ? y : sign).keep(1, stream);
  return y;
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_rrelu_by(Tensor x, Tensor sign, Tensor stream, float lower, float upper) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("_rrelu(Tensor x, float lower, float upper, int seed, int offset) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("_rrelu_backward(Tensor dy, Tensor saved, float lower, float upper, int seed, int offset) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_rrelu", rrelu_cpu);
  m.impl("_rrelu_backward", rrelu_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_rrelu", rrelu_meta);
  m.impl("_rrelu_backward", rrelu_backward_meta);
  m.impl("_rrelu_by", rrelu_by_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_rrelu", rrelu_autograd);
  m.impl("_rrelu_backward", rrelu_backward_autograd);
  m.impl("_rrelu_by", rrelu_by_autograd);
}

// --- front ops -------------------------------------------------------------------------------------------

const Op rrelu_op("rrelu", "_rrelu", kFloating);

const char* why_not_rrelu(const Tensor& x, double lower, double upper) {
  const bool in_range =
      lower <= upper && std::isfinite(static_cast<float>(upper) - static_cast<float>(lower));
  return in_range ? why_not(rrelu_op, x) : "no kernel for these bounds";
}

// torch's output is contiguous whatever the input.
Tensor out_of_place(const Tensor& input, double lower, double upper) {
  const auto native = [&] {
    const Tensor x = input.contiguous();
    if (!x.is_cpu()) return rrelu_by_autograd(x, x, random_stream(x), lower, upper);
    const auto [seed, offset] = next_stream();
    return rrelu_autograd(x, lower, upper, seed, offset);
  };
  return front(rrelu_op, why_not_rrelu(input, lower, upper), native,
               [&] { return at::rrelu(input, lower, upper, /*training=*/true); });
}

Tensor in_place(Tensor input, double lower, double upper) {
  const char* reason = why_not_rrelu(input, lower, upper);
  const auto native = [&] {
    const auto [seed, offset] = next_stream();
    return rrelu_in_place(input, lower, upper, seed, offset);
  };
  return front(rrelu_op, reason ? reason : why_not_overwrite(input), native,
               [&] { return at::rrelu_(input, lower, upper, /*training=*/true); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("rrelu(Tensor input, float lower, float upper) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.impl("rrelu", c10::DispatchKey::CompositeImplicitAutograd, out_of_place);
  m.def("rrelu_(Tensor(a!) input, float lower, float upper) -> Tensor(a!)", {at::Tag::pt2_compliant_tag});
  m.impl("rrelu_", c10::DispatchKey::CompositeImplicitAutograd, in_place);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("rrelu", out_of_place);
  m.impl("rrelu_", in_place);
}
FASTNN_BIND(activation_random, m) {
  bind_front<out_of_place>(m, "rrelu", {"input", "lower", "upper"});
  bind_front<in_place>(m, "rrelu_", {"input", "lower", "upper"});
}

}  // namespace
}  // namespace fastnn::ops
