// Scaled dot-product attention: a private op on [N, H, L, E] views with any strides, its backward, autograd,
// the front op. Dropout is drawn inside: seed and offset decide it, as in dropout.cpp.
#include "ops/attention.h"

#include <cmath>

#include "ops/bind.h"
#include "ops/front.h"
#include "ops/node.h"
#include "ops/random.h"

namespace fastnn::ops {
namespace {

// Lies in memory as t does where features are side by side there: then heads that were split from one
// dimension join again without a copy, and so do their gradients.
Tensor laid_out_like(const Tensor& t) {
  const Tensor y = at::empty_like(t);
  return y.sym_stride(-1) == 1 ? y : at::empty_symint(t.sym_sizes(), t.options());
}

Tensor output_like(const Tensor& q, const Tensor& v) {
  if (q.sym_size(3) == v.sym_size(3)) return laid_out_like(q);
  return at::empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)}, q.options());
}

std::tuple<Tensor, Tensor> attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v,
                                         const OptionalTensor& mask, double p, bool causal, double scale,
                                         int64_t seed, int64_t offset) {
  const Operands t(q, k, v, mask);
  Tensor y = output_like(q, v), lse = at::empty({t.shape.N, t.shape.H, t.shape.L}, q.options());
  cpu::attention_forward(
      {.in = t.inputs({p, causal, scale, seed, offset}), .y = view(y), .lse = lse.data_ptr()});
  return {y, lse};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Tensor gradient_like(const Tensor& t, bool wanted) {
  return wanted ? laid_out_like(t) : at::empty({0}, t.options());
}

Gradients attention_backward_cpu(const Tensor& dy, const Tensor& q, const Tensor& k, const Tensor& v,
                                 const OptionalTensor& mask, const Tensor& y, const Tensor& lse, double p,
                                 bool causal, double scale, int64_t seed, int64_t offset,
                                 std::array<bool, 3> wanted) {
  const Operands t(q, k, v, mask);
  check_sizes(y, {t.shape.N, t.shape.H, t.shape.L, t.shape.EV}, q, "y");
  check_like(dy, y, "dy");
  check_sizes(lse, {t.shape.N, t.shape.H, t.shape.L}, q, "lse");
  const Tensor slope = side_by_side(dy), out = side_by_side(y), dense_lse = lse.contiguous();
  Tensor dq = gradient_like(q, wanted[0]), dk = gradient_like(k, wanted[1]), dv = gradient_like(v, wanted[2]);
  cpu::attention_backward({.in = t.inputs({p, causal, scale, seed, offset}),
                           .y = view(out),
                           .dy = view(slope),
                           .lse = dense_lse.const_data_ptr(),
                           .dq = view_or_null(dq, wanted[0]),
                           .dk = view_or_null(dk, wanted[1]),
                           .dv = view_or_null(dv, wanted[2])});
  return {dq, dk, dv};
}

std::tuple<Tensor, Tensor> attention_meta(const Tensor& q, const Tensor&, const Tensor& v,
                                          const OptionalTensor&, double, bool, double, int64_t, int64_t) {
  return {output_like(q, v), at::empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2)}, q.options())};
}

Gradients attention_backward_meta(const Tensor&, const Tensor& q, const Tensor& k, const Tensor& v,
                                  const OptionalTensor&, const Tensor&, const Tensor&, double, bool, double,
                                  int64_t, int64_t, std::array<bool, 3> wanted) {
  return {gradient_like(q, wanted[0]), gradient_like(k, wanted[1]), gradient_like(v, wanted[2])};
}

// --- autograd --------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> call_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                          const OptionalTensor& mask, double p, bool causal, double scale,
                                          int64_t seed, int64_t offset) {
  static const auto op = handle<decltype(attention_cpu)>("fastnn::_attention");
  return op.call(q, k, v, mask, p, causal, scale, seed, offset);
}

Gradients call_attention_backward(const Tensor& dy, const Tensor& q, const Tensor& k, const Tensor& v,
                                  const OptionalTensor& mask, const Tensor& y, const Tensor& lse, double p,
                                  bool causal, double scale, int64_t seed, int64_t offset,
                                  std::array<bool, 3> wanted) {
  static const auto op = handle<decltype(attention_backward_cpu)>("fastnn::_attention_backward");
  return op.call(dy, q, k, v, mask, y, lse, p, causal, scale, seed, offset, wanted);
}

struct AttentionGradient {
  static constexpr const char* kName = "AttentionBackward";
  static constexpr int kInputs = 3, kSaved = 6;
  using Arguments = std::tuple<double, bool, double, int64_t, int64_t>;
  static variable_list backward(const variable_list& dy, const Saved<6>& saved, const Wanted<3>& wanted,
                                double p, bool causal, double scale, int64_t seed, int64_t offset) {
    const auto& [q, k, v, mask, y, lse] = saved;
    const OptionalTensor m = mask.defined() ? OptionalTensor(mask) : std::nullopt;
    auto [dq, dk, dv] =
        call_attention_backward(dy[0], q, k, v, m, y, lse, p, causal, scale, seed, offset, wanted);
    return {wanted[0] ? dq : Tensor(), wanted[1] ? dk : Tensor(), wanted[2] ? dv : Tensor()};
  }
};

std::tuple<Tensor, Tensor> attention_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const OptionalTensor& mask, double p, bool causal, double scale,
                                              int64_t seed, int64_t offset) {
  TORCH_CHECK(!needs_grad(mask), "fastnn::_attention has no gradient of the mask");
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_attention(q, k, v, mask, p, causal, scale, seed, offset);
  };
  if (!records(q, k, v)) return run();
  const auto node = make_node<AttentionGradient>({p, causal, scale, seed, offset}, q, k, v);
  auto [y, lse] = run();
  node->output(y);
  node->keep(0, q).keep(1, k).keep(2, v).keep(3, mask.value_or(Tensor())).keep(4, y).keep(5, lse);
  return {y, lse};
}

// The factor of each probability, 0 or 1 / (1 - p): what the kernels decide, a row of whole batches each.
Tensor dropout_factors(const Tensor& q, const c10::SymInt& S, double p, int64_t seed, int64_t offset) {
  using Dropout = Tensor(const Tensor&, double, double, double, double, c10::SymInt, int64_t, int64_t);
  static const auto op = handle<Dropout>("fastnn::_dropout");
  const c10::SymInt columns = (S + kPhiloxBatch - 1) / kPhiloxBatch * kPhiloxBatch;
  const Tensor ones = at::ones_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), columns}, q.options());
  return op.call(ones, p, 1 / (1 - p), 0, 0, 1, seed, offset).narrow_symint(3, 0, S);
}

// Second derivatives: the same formulas from torch's differentiable ops, with the whole L x S in memory.
Gradients attention_backward_autograd(const Tensor& dy, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const OptionalTensor& mask, const Tensor& y, const Tensor& lse,
                                      double p, bool causal, double scale, int64_t seed, int64_t offset,
                                      std::array<bool, 3> wanted) {
  if (!records(dy, q, k, v)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_attention_backward(dy, q, k, v, mask, y, lse, p, causal, scale, seed, offset, wanted);
  }
  const c10::SymInt L = q.sym_size(2), S = k.sym_size(2), group = q.sym_size(1) / k.sym_size(1);
  const auto for_queries = [&](const Tensor& t) {
    return group == 1 ? t : t.repeat_interleave_symint(group, 1);
  };
  const auto for_keys = [&](const Tensor& t) {
    return group == 1 ? t : t.unflatten_symint(1, {t.sym_size(1) / group, group}).sum(2);
  };
  const Tensor keys = for_queries(k), values = for_queries(v);
  Tensor scores = at::matmul(q, keys.transpose(-1, -2)) * scale;
  const auto hide = [&](const Tensor& seen) {
    scores = scores.masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity());
  };
  if (mask && mask->scalar_type() == at::kBool) hide(*mask);
  if (mask && mask->scalar_type() != at::kBool) scores = scores + *mask;
  if (causal) hide(at::ones_symint({L, S}, q.options().dtype(at::kBool)).tril());
  const Tensor probabilities = at::_safe_softmax(scores, -1);
  Tensor slopes = at::matmul(dy, values.transpose(-1, -2)), kept = probabilities;
  if (p > 0) {
    const Tensor factors = dropout_factors(q, S, p, seed, offset);
    slopes = slopes * factors;
    kept = kept * factors;
  }
  const Tensor ds = probabilities * (slopes - (slopes * probabilities).sum(-1, true)) * scale;
  const Tensor none = at::empty({0}, q.options());
  return {wanted[0] ? at::matmul(ds, keys) : none,
          wanted[1] ? for_keys(at::matmul(ds.transpose(-1, -2), q)) : none.clone(),
          wanted[2] ? for_keys(at::matmul(kept.transpose(-1, -2), dy)) : none.clone()};
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float p, bool causal, float scale, int seed, "
      "int offset) -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_attention_backward(Tensor dy, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor y, Tensor lse, "
      "float p, bool causal, float scale, int seed, int offset, bool[3] wanted) -> (Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_attention", attention_cpu);
  m.impl("_attention_backward", attention_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_attention", attention_meta);
  m.impl("_attention_backward", attention_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_attention", attention_autograd);
  m.impl("_attention_backward", attention_backward_autograd);
}

// --- front op --------------------------------------------------------------------------------------------

const Op attention_op("scaled_dot_product_attention", "_attention", kFloatDouble, /*autocast=*/true);

const char* why_not_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask, double p,
                              bool causal, bool gqa) {
  if (const char* reason = why_not(attention_op, q, k, v)) return reason;
  const int64_t dims = q.dim();
  if (dims < 2 || dims > 4 || k.dim() != dims || v.dim() != dims) return "the number of dimensions";
  if (q.numel() == 0 || k.numel() == 0 || v.numel() == 0) return "an empty input";
  if (q.size(-1) != k.size(-1) || k.size(-2) != v.size(-2)) return "shapes";
  if (dims > 2) {
    const int64_t H = q.size(-3), HK = k.size(-3);
    if (v.size(-3) != HK || (gqa ? H % HK != 0 : H != HK)) return "the numbers of heads";
  }
  if (dims > 3 && (k.size(0) != q.size(0) || v.size(0) != q.size(0))) return "a batch that is broadcast";
  if (!(p >= 0 && p < 1)) return "nothing is kept, or p is not a probability";
  return mask.defined() ? why_not_mask(q, k, mask, causal) : nullptr;
}

Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const OptionalTensor& attn_mask, double dropout_p, bool is_causal,
                                    std::optional<double> scale, bool enable_gqa) {
  const char* reason =
      why_not_attention(query, key, value, attn_mask.value_or(Tensor()), dropout_p, is_causal, enable_gqa);
  return front(
      attention_op, reason,
      [&] {
        const double factor = scale.value_or(1 / std::sqrt(static_cast<double>(query.size(-1))));
        const Stream stream = dropout_p > 0 ? next_stream() : Stream{0, 0};
        const auto run = [&](const Tensor& q, const Tensor& k, const Tensor& v) {
          return std::get<0>(attention_autograd(q, k, v, attn_mask, dropout_p, is_causal, factor, stream.seed,
                                                stream.offset));
        };
        switch (query.dim()) {
          case 2: {
            const auto whole = [](const Tensor& t) { return t.unsqueeze(0).unsqueeze(0); };
            return run(whole(query), whole(key), whole(value)).squeeze(0).squeeze(0);
          }
          case 3: return run(query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)).squeeze(0);
          default: return run(query, key, value);
        }
      },
      [&] {
        return at::scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale,
                                                enable_gqa);
      });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, float "
      "dropout_p, bool is_causal, float? scale, bool enable_gqa) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.impl("scaled_dot_product_attention", c10::DispatchKey::CompositeImplicitAutograd,
         scaled_dot_product_attention);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("scaled_dot_product_attention", scaled_dot_product_attention);
}

FASTNN_BIND(attention, m) {
  bind_front<scaled_dot_product_attention>(
      m, "scaled_dot_product_attention",
      {"query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"});
}

}  // namespace
}  // namespace fastnn::ops
