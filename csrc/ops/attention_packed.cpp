// Attention on the projections q, k and v of one tensor, as one product leaves them side by side: heads are
// views of it, and the three gradients go into one tensor, where the backward of a split would copy them.
#include <cmath>

#include "ops/attention.h"
#include "ops/bind.h"
#include "ops/front.h"
#include "ops/node.h"
#include "ops/random.h"

namespace fastnn::ops {
namespace {

using Pair = std::tuple<Tensor, Tensor>;

// [N, L, 3 H E], or [L, N, 3 H E], as three views [N, H, L, E].
struct Heads {
  Tensor q, k, v;

  Heads(const Tensor& packed, int64_t heads, bool batch_first) {
    const Tensor split = packed.unflatten_symint(-1, {3, heads, packed.sym_size(-1) / (3 * heads)});
    const auto part = [&](int64_t i) {
      return split.select(2, i).permute(batch_first ? at::IntArrayRef{0, 2, 1, 3}
                                                    : at::IntArrayRef{1, 2, 0, 3});
    };
    q = part(0), k = part(1), v = part(2);
  }
};
// The same of one tensor of heads, [N, L, H E].
Tensor heads_of(const Tensor& t, int64_t heads, bool batch_first) {
  const Tensor split = t.unflatten_symint(-1, {heads, t.sym_size(-1) / heads});
  return split.permute(batch_first ? at::IntArrayRef{0, 2, 1, 3} : at::IntArrayRef{1, 2, 0, 3});
}
Tensor joined(const Tensor& t, bool batch_first) {
  return t.permute(batch_first ? at::IntArrayRef{0, 2, 1, 3} : at::IntArrayRef{2, 0, 1, 3}).flatten(2);
}

Tensor output_of(const Tensor& packed) {
  std::vector<c10::SymInt> sizes = packed.sym_sizes().vec();
  sizes.back() = sizes.back() / 3;
  return at::empty_symint(sizes, packed.options());
}

Pair packed_cpu(const Tensor& packed, const OptionalTensor& mask, int64_t heads, bool batch_first, double p,
                bool causal, double scale, int64_t seed, int64_t offset) {
  TORCH_CHECK(packed.dim() == 3 && heads > 0 && packed.size(2) % (3 * heads) == 0,
              "fastnn::_attention_packed: ", heads, " heads of ", packed.sizes());
  const Heads h(packed, heads, batch_first);
  const Operands t(h.q, h.k, h.v, mask);
  Tensor y = output_of(packed), lse = at::empty({t.shape.N, t.shape.H, t.shape.L}, packed.options());
  cpu::attention_forward({.in = t.inputs({p, causal, scale, seed, offset}),
                          .y = view(heads_of(y, heads, batch_first)),
                          .lse = lse.data_ptr()});
  return {y, lse};
}

Tensor packed_backward_cpu(const Tensor& dy, const Tensor& packed, const OptionalTensor& mask,
                           const Tensor& y, const Tensor& lse, int64_t heads, bool batch_first, double p,
                           bool causal, double scale, int64_t seed, int64_t offset) {
  TORCH_CHECK(packed.dim() == 3 && heads > 0 && packed.size(2) % (3 * heads) == 0,
              "fastnn::_attention_packed_backward: ", heads, " heads of ", packed.sizes());
  const Heads h(packed, heads, batch_first);
  const Operands t(h.q, h.k, h.v, mask);
  check_sizes(y, {packed.size(0), packed.size(1), packed.size(2) / 3}, packed, "y");
  check_like(dy, y, "dy");
  check_sizes(lse, {t.shape.N, t.shape.H, t.shape.L}, packed, "lse");
  const Tensor slope = side_by_side(dy), out = side_by_side(y), dense_lse = lse.contiguous();
  Tensor gradient = at::empty(packed.sizes(), packed.options());
  const Heads d(gradient, heads, batch_first);
  cpu::attention_backward({.in = t.inputs({p, causal, scale, seed, offset}),
                           .y = view(heads_of(out, heads, batch_first)),
                           .dy = view(heads_of(slope, heads, batch_first)),
                           .lse = dense_lse.const_data_ptr(),
                           .dq = view(d.q),
                           .dk = view(d.k),
                           .dv = view(d.v)});
  return gradient;
}

Pair packed_meta(const Tensor& packed, const OptionalTensor&, int64_t heads, bool batch_first, double, bool,
                 double, int64_t, int64_t) {
  const c10::SymInt N = packed.sym_size(batch_first ? 0 : 1), L = packed.sym_size(batch_first ? 1 : 0);
  return {output_of(packed), at::empty_symint({N, heads, L}, packed.options())};
}
Tensor packed_backward_meta(const Tensor&, const Tensor& packed, const OptionalTensor&, const Tensor&,
                            const Tensor&, int64_t, bool, double, bool, double, int64_t, int64_t) {
  return at::empty_symint(packed.sym_sizes(), packed.options());
}

// --- autograd --------------------------------------------------------------------------------------------

Pair call_packed(const Tensor& packed, const OptionalTensor& mask, int64_t heads, bool batch_first, double p,
                 bool causal, double scale, int64_t seed, int64_t offset) {
  static const auto op = handle<decltype(packed_cpu)>("fastnn::_attention_packed");
  return op.call(packed, mask, heads, batch_first, p, causal, scale, seed, offset);
}
Tensor call_packed_backward(const Tensor& dy, const Tensor& packed, const OptionalTensor& mask,
                            const Tensor& y, const Tensor& lse, int64_t heads, bool batch_first, double p,
                            bool causal, double scale, int64_t seed, int64_t offset) {
  static const auto op = handle<decltype(packed_backward_cpu)>("fastnn::_attention_packed_backward");
  return op.call(dy, packed, mask, y, lse, heads, batch_first, p, causal, scale, seed, offset);
}

struct PackedGradient {
  static constexpr const char* kName = "AttentionPackedBackward";
  static constexpr int kInputs = 1, kSaved = 4;
  using Arguments = std::tuple<int64_t, bool, double, bool, double, int64_t, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<4>& saved, const Wanted<1>&,
                                int64_t heads, bool batch_first, double p, bool causal, double scale,
                                int64_t seed, int64_t offset) {
    const auto& [packed, mask, y, lse] = saved;
    const OptionalTensor m = mask.defined() ? OptionalTensor(mask) : std::nullopt;
    return {
        call_packed_backward(dy[0], packed, m, y, lse, heads, batch_first, p, causal, scale, seed, offset)};
  }
};

Pair packed_autograd(const Tensor& packed, const OptionalTensor& mask, int64_t heads, bool batch_first,
                     double p, bool causal, double scale, int64_t seed, int64_t offset) {
  TORCH_CHECK(!needs_grad(mask), "fastnn::_attention_packed has no gradient of the mask");
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_packed(packed, mask, heads, batch_first, p, causal, scale, seed, offset);
  };
  if (!records(packed)) return run();
  const auto node = make_node<PackedGradient>({heads, batch_first, p, causal, scale, seed, offset}, packed);
  auto [y, lse] = run();
  node->output(y).keep(0, packed).keep(1, or_undefined(mask)).keep(2, y).keep(3, lse);
  return {y, lse};
}

// Second derivatives: those of the op on separate tensors.
Tensor packed_backward_autograd(const Tensor& dy, const Tensor& packed, const OptionalTensor& mask,
                                const Tensor& y, const Tensor& lse, int64_t heads, bool batch_first, double p,
                                bool causal, double scale, int64_t seed, int64_t offset) {
  if (!records(dy, packed)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_packed_backward(dy, packed, mask, y, lse, heads, batch_first, p, causal, scale, seed, offset);
  }
  using Separate = std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
      const Tensor&, double, bool, double, int64_t, int64_t, std::array<bool, 3>);
  static const auto op = handle<Separate>("fastnn::_attention_backward");
  const Heads h(packed, heads, batch_first);
  const auto [dq, dk, dv] =
      op.call(heads_of(dy, heads, batch_first), h.q, h.k, h.v, mask, heads_of(y, heads, batch_first), lse, p,
              causal, scale, seed, offset, {true, true, true});
  return at::cat({joined(dq, batch_first), joined(dk, batch_first), joined(dv, batch_first)}, -1);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_attention_packed(Tensor packed, Tensor? mask, int heads, bool batch_first, float p, bool causal, "
      "float scale, int seed, int offset) -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_attention_packed_backward(Tensor dy, Tensor packed, Tensor? mask, Tensor y, Tensor lse, int heads, "
      "bool batch_first, float p, bool causal, float scale, int seed, int offset) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_attention_packed", packed_cpu);
  m.impl("_attention_packed_backward", packed_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_attention_packed", packed_meta);
  m.impl("_attention_packed_backward", packed_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_attention_packed", packed_autograd);
  m.impl("_attention_packed_backward", packed_backward_autograd);
}

// --- front op --------------------------------------------------------------------------------------------

const Op packed_op("packed_attention", "_attention_packed", kFloatDouble, /*autocast=*/true);

const char* why_not_packed(const Tensor& packed, const OptionalTensor& mask, int64_t heads, bool batch_first,
                           double p, bool causal) {
  if (const char* reason = why_not(packed_op, packed)) return reason;
  if (!packed.is_cpu()) return "no CUDA kernel in this build";
  if (packed.dim() != 3 || packed.numel() == 0) return "an empty input, or not of three dimensions";
  if (heads <= 0 || packed.size(2) % (3 * heads) != 0) return "the number of heads";
  if (!(p >= 0 && p < 1)) return "nothing is kept, or p is not a probability";
  if (!mask || !mask->defined()) return nullptr;
  const Heads h(packed, heads, batch_first);
  return why_not_mask(h.q, h.k, *mask, causal);
}

Tensor packed_attention(const Tensor& packed, const OptionalTensor& mask, int64_t heads, bool batch_first,
                        double p, bool causal) {
  return front(
      packed_op, why_not_packed(packed, mask, heads, batch_first, p, causal),
      [&] {
        const Stream stream = p > 0 ? next_stream() : Stream{};
        const double E = static_cast<double>(packed.size(2) / (3 * heads));
        return std::get<0>(packed_autograd(packed, mask, heads, batch_first, p, causal, 1 / std::sqrt(E),
                                           stream.seed, stream.offset));
      },
      [&] {
        const Heads h(packed, heads, batch_first);
        return joined(at::scaled_dot_product_attention(h.q, h.k, h.v, mask, p, causal), batch_first);
      });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "packed_attention(Tensor packed, Tensor? mask, int heads, bool batch_first, float p, bool causal) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.impl("packed_attention", c10::DispatchKey::CompositeImplicitAutograd, packed_attention);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("packed_attention", packed_attention);
}

FASTNN_BIND(attention_packed, m) {
  bind_front<packed_attention>(m, "packed_attention",
                               {"packed", "mask", "heads", "batch_first", "p", "causal"});
}

}  // namespace
}  // namespace fastnn::ops
