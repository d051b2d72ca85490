// The dropout family. One private op, `_dropout`, is pure: seed and offset decide the mask, and its gradient
// is the same op applied to dy. The masks are not those of torch for the same seed.
#include "fastnn/dropout.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/bind.h"
#include "ops/front.h"
#include "ops/node.h"
#include "ops/random.h"

namespace fastnn::ops {
namespace {

// --- private op ------------------------------------------------------------------------------------------

// y = keep ? x * scale + kept : x * 0 + dropped; one decision for `length` adjacent elements of contiguous x.
Tensor dropout_cpu(const Tensor& x, double p, double scale, double kept, double dropped, int64_t length,
                   int64_t seed, int64_t offset) {
  TORCH_CHECK(p >= 0 && p < 1, "fastnn::_dropout: p must be in [0, 1), but is ", p);
  TORCH_CHECK(length > 0 && x.numel() % length == 0, "fastnn::_dropout: length does not divide the input");
  const Tensor dense = x.contiguous();
  Tensor y = fresh_like(dense);
  cpu::dropout({.dtype = dtype_of(x),
                .decisions = x.numel() / length,
                .length = length,
                .x = dense.const_data_ptr(),
                .y = y.data_ptr(),
                .p = p,
                .scale = scale,
                .kept = kept,
                .dropped = dropped,
                .seed = static_cast<uint64_t>(seed),
                .offset = static_cast<uint64_t>(offset)});
  return y;
}

Tensor dropout_meta(const Tensor& x, double, double, double, double, c10::SymInt, int64_t, int64_t) {
  return at::empty_like(x, at::MemoryFormat::Contiguous);
}

Tensor masked(const Tensor& x, double p, double scale, double kept, double dropped, int64_t length,
              int64_t seed, int64_t offset) {
  static const auto op = handle<decltype(dropout_cpu)>("fastnn::_dropout");
  return op.call(x, p, scale, kept, dropped, length, seed, offset);
}

struct DropoutGradient {
  static constexpr const char* kName = "DropoutBackward";
  static constexpr int kInputs = 1, kSaved = 0;
  using Arguments = std::tuple<double, double, int64_t, int64_t, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<0>&, const Wanted<1>&, double p,
                                double scale, int64_t length, int64_t seed, int64_t offset) {
    return {masked(dy[0], p, scale, 0, 0, length, seed, offset)};
  }
};

Tensor dropout_autograd(const Tensor& x, double p, double scale, double kept, double dropped, int64_t length,
                        int64_t seed, int64_t offset) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked(x, p, scale, kept, dropped, length, seed, offset);
  };
  if (!records(x)) return run();
  const auto node = make_node<DropoutGradient>({p, scale, length, seed, offset}, x);
  const Tensor y = run();
  node->output(y);
  return y;
}

// --- the same on CUDA: seed and offset lie in device memory, so that a captured graph draws anew ----------

Tensor dropout_by_meta(const Tensor& x, const Tensor&, double, double, double, double, c10::SymInt) {
  return at::empty_like(x, at::MemoryFormat::Contiguous);
}
Tensor random_stream_meta(const Tensor& like) {
  return at::empty({2}, like.options().dtype(at::kLong));
}

Tensor masked_by(const Tensor& x, const Tensor& stream, double p, double scale, double kept, double dropped,
                 int64_t length) {
  static const auto op =
      handle<Tensor(const Tensor&, const Tensor&, double, double, double, double, int64_t)>(
          "fastnn::_dropout_by");
  return op.call(x, stream, p, scale, kept, dropped, length);
}

struct DropoutByGradient {
  static constexpr const char* kName = "DropoutBackward";
  static constexpr int kInputs = 1, kSaved = 1;
  using Arguments = std::tuple<double, double, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<1>& saved, const Wanted<1>&, double p,
                                double scale, int64_t length) {
    return {masked_by(dy[0], saved[0], p, scale, 0, 0, length)};
  }
};

Tensor dropout_by_autograd(const Tensor& x, const Tensor& stream, double p, double scale, double kept,
                           double dropped, int64_t length) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return masked_by(x, stream, p, scale, kept, dropped, length);
  };
  if (!records(x)) return run();
  const auto node = make_node<DropoutByGradient>({p, scale, length}, x);
  const Tensor y = run();
  node->output(y).keep(0, stream);
  return y;
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_dropout_by(Tensor x, Tensor stream, float p, float scale, float kept, float dropped, SymInt length) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("_random_stream(Tensor like) -> Tensor",
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def(
      "_dropout(Tensor x, float p, float scale, float kept, float dropped, SymInt length, int seed, int "
      "offset) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_dropout", dropout_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_dropout", dropout_meta);
  m.impl("_dropout_by", dropout_by_meta);
  m.impl("_random_stream", random_stream_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_dropout", dropout_autograd);
  m.impl("_dropout_by", dropout_by_autograd);
}

// --- what the front ops share ----------------------------------------------------------------------------

// A member of the family: what it drops, what it does to the rest, and torch's op of that name.
struct Member {
  const Op& op;
  bool features, alpha;
  Tensor (*torch)(const Tensor&, double, bool);
  Tensor& (*torch_inplace)(Tensor&, double, bool);
};

// The affine map of kept and dropped elements, and the mask's place in the random stream.
struct Draw {
  double p, scale, kept, dropped;
  Stream stream = {};
  Tensor on_device;  // CUDA: the stream

  Draw(const Tensor& x, double p, bool alpha) : p(p), scale(1 / (1 - p)), kept(0), dropped(0) {
    if (x.is_cpu()) {
      stream = next_stream();
    } else {
      on_device = random_stream(x);
    }
    if (alpha) {
      constexpr double kAlpha = 1.7580993408473766;  // -(SELU's value at minus infinity)
      scale = 1 / std::sqrt((kAlpha * kAlpha * p + 1) * (1 - p));
      kept = kAlpha * scale * p;
      dropped = kept - kAlpha * scale;
    }
  }

  Tensor apply(const Tensor& x, int64_t length) const {
    if (on_device.defined()) return dropout_by_autograd(x, on_device, p, scale, kept, dropped, length);
    return dropout_autograd(x, p, scale, kept, dropped, length, stream.seed, stream.offset);
  }
};

// A permutation that makes a dense tensor contiguous: dimensions by falling stride.
std::vector<int64_t> memory_order(const Tensor& x) {
  std::vector<int64_t> order(x.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return x.stride(a) > x.stride(b); });
  return order;
}

// Element by element, in the order of memory; the result has the layout of x, as torch's has.
Tensor drop_elements(const Tensor& x, const Draw& draw) {
  if (x.is_contiguous()) return draw.apply(x, 1);
  const Tensor dense = x.is_non_overlapping_and_dense() ? x : x.clone(at::MemoryFormat::Preserve);
  const std::vector<int64_t> order = memory_order(dense);
  std::vector<int64_t> back(order.size());
  for (size_t i = 0; i < order.size(); ++i) back[order[i]] = static_cast<int64_t>(i);
  return draw.apply(dense.permute(order), 1).permute(back);
}

// One decision for each x[n, c]. Maps that do not lie together in memory take their factors from an [N, C]
// draw.
Tensor drop_features(const Tensor& x, const Draw& draw) {
  const int64_t N = x.size(0), C = x.size(1);
  if (x.is_contiguous()) return draw.apply(x, x.numel() / (N * C));
  std::vector<int64_t> sizes(x.dim(), 1);
  sizes[0] = N;
  sizes[1] = C;
  Draw factor = draw;
  factor.kept = factor.dropped = 0;
  const Tensor y = x * factor.apply(at::ones(sizes, x.options()), 1);
  return draw.dropped == 0 ? y : y + draw.apply(at::zeros(sizes, x.options()), 1);
}

const char* why_not_dropout(const Member& member, const Tensor& input, double p) {
  if (!(p >= 0 && p <= 1)) return "p is not a probability";
  if (member.features && input.dim() < 2) return "an input of fewer than two dimensions";
  return why_not(member.op, input);
}

bool identity(const Tensor& input, double p, bool train) {
  return !train || p == 0 || input.numel() == 0;
}

Tensor out_of_place(const Member& member, const Tensor& input, double p) {
  if (p == 1) return input * at::zeros({}, input.options());
  const Draw draw(input, p, member.alpha);
  return member.features ? drop_features(input, draw) : drop_elements(input, draw);
}

Tensor run(const Member& member, const Tensor& input, double p, bool train) {
  return front(
      member.op, why_not_dropout(member, input, p),
      [&] { return identity(input, p, train) ? input : out_of_place(member, input, p); },
      [&] { return member.torch(input, p, train); });
}

Tensor run_inplace(const Member& member, Tensor input, double p, bool train) {
  return front(
      member.op, why_not_dropout(member, input, p),
      [&] { return identity(input, p, train) ? input : input.copy_(out_of_place(member, input, p)); },
      [&] { return member.torch_inplace(input, p, train); });
}

// --- front ops -------------------------------------------------------------------------------------------

const Op dropout_op("dropout", "_dropout", kFloating);
const Op feature_dropout_op("feature_dropout", "_dropout", kFloating);
const Op alpha_dropout_op("alpha_dropout", "_dropout", kFloating);
const Op feature_alpha_dropout_op("feature_alpha_dropout", "_dropout", kFloating);

const Member kDropout = {dropout_op, false, false, at::dropout, at::dropout_};
const Member kFeatureDropout = {feature_dropout_op, true, false, at::feature_dropout, at::feature_dropout_};
const Member kAlphaDropout = {alpha_dropout_op, false, true, at::alpha_dropout, at::alpha_dropout_};
const Member kFeatureAlphaDropout = {feature_alpha_dropout_op, true, true, at::feature_alpha_dropout,
                                     at::feature_alpha_dropout_};

template <const Member& member>
Tensor call(const Tensor& input, double p, bool train) {
  return run(member, input, p, train);
}
template <const Member& member>
Tensor call_inplace(Tensor input, double p, bool train) {
  return run_inplace(member, std::move(input), p, train);
}

template <const Member& member>
void define(torch::Library& m) {
  const std::string name = member.op.name;
  m.def((name + "(Tensor input, float p, bool train) -> Tensor").c_str(), {at::Tag::pt2_compliant_tag});
  m.impl(name.c_str(), c10::DispatchKey::CompositeImplicitAutograd, call<member>);
  m.def((name + "_(Tensor(a!) input, float p, bool train) -> Tensor(a!)").c_str(),
        {at::Tag::pt2_compliant_tag});
  m.impl((name + "_").c_str(), c10::DispatchKey::CompositeImplicitAutograd, call_inplace<member>);
}
template <const Member& member>
void define_batched(torch::Library& m) {
  const std::string name = member.op.name;
  m.impl(name.c_str(), call<member>);
  m.impl((name + "_").c_str(), call_inplace<member>);
}
template <const Member& member>
void add(pybind11::module_& m) {
  const std::string name = member.op.name;
  bind_front<call<member>>(m, name, {"input", "p", "train"});
  bind_front<call_inplace<member>>(m, name + "_", {"input", "p", "train"});
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  define<kDropout>(m);
  define<kFeatureDropout>(m);
  define<kAlphaDropout>(m);
  define<kFeatureAlphaDropout>(m);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  define_batched<kDropout>(m);
  define_batched<kFeatureDropout>(m);
  define_batched<kAlphaDropout>(m);
  define_batched<kFeatureAlphaDropout>(m);
}
FASTNN_BIND(dropout, m) {
  add<kDropout>(m);
  add<kFeatureDropout>(m);
  add<kAlphaDropout>(m);
  add<kFeatureAlphaDropout>(m);
}

}  // namespace
}  // namespace fastnn::ops
