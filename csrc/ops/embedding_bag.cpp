// Sums, means and maxima over bags of rows: front op, private op, autograd. The private op takes bags in one
// form: indices and offsets in one dimension, the end of the last bag among the offsets.
#include "fastnn/embedding.h"
#include "ops/bind.h"
#include "ops/embedding.h"
#include "ops/front.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

using c10::SymInt;
using Pair = std::tuple<Tensor, Tensor>;

constexpr int64_t kSum = static_cast<int64_t>(BagMode::kSum), kMean = static_cast<int64_t>(BagMode::kMean),
                  kMax = static_cast<int64_t>(BagMode::kMax);

// What the kernels read, checked.
struct Bags {
  Tensor index, offsets, sample_weight;
  int64_t B;

  Bags(const Tensor& indices, const Tensor& ends, const OptionalTensor& weights, at::ScalarType compute)
      : index(entries_of(indices)),
        offsets(entries_of(ends)),
        sample_weight(vector_of(weights, indices.numel(), compute)),
        B(ends.numel() - 1) {
    TORCH_CHECK(offsets.dim() == 1 && B >= 0, "fastnn: offsets of ", ends.sizes());
    TORCH_CHECK(rising(offsets, index.numel()), "fastnn: offsets that do not rise from 0 to ", index.numel());
  }

  static bool rising(const Tensor& offsets, int64_t end) {
    const int64_t *first = offsets.const_data_ptr<int64_t>(), *last = first + offsets.numel() - 1;
    return *first == 0 && *last == end && std::is_sorted(first, last + 1);
  }
  int64_t bad(int64_t entry) const { return index.const_data_ptr<int64_t>()[entry]; }
};

void check_entry(const Bags& bags, int64_t entry) {
  TORCH_CHECK(entry < 0, "embedding_bag: Expected idx >= 0 && idx < num_embeddings but found idx to be ",
              entry < 0 ? 0 : bags.bad(entry));
}

// The bags; their sizes (kMean) or the rows that each number is from (kMax).
Pair bag_cpu(const Tensor& weight, const Tensor& indices, const Tensor& offsets,
             const OptionalTensor& sample_weight, int64_t mode, SymInt padding, bool) {
  check_table(weight);
  const Bags bags(indices, offsets, sample_weight, compute_type(weight));
  TORCH_CHECK(mode >= kSum && mode <= kMax && (mode == kSum || !bags.sample_weight.defined()),
              "fastnn::_embedding_bag: mode ", mode);
  const int64_t D = weight.size(1);
  const Tensor dense = weight.contiguous();
  Tensor y = at::empty({bags.B, D}, weight.options());
  const auto integers = weight.options().dtype(at::kLong);
  Tensor kept =
      mode == kMax ? at::empty({bags.B, D}, integers) : at::empty({mode == kMean ? bags.B : 0}, integers);
  check_entry(bags,
              cpu::embedding_bag_forward({.dtype = dtype_of(weight),
                                          .mode = static_cast<BagMode>(mode),
                                          .V = weight.size(0),
                                          .D = D,
                                          .B = bags.B,
                                          .padding = padding.expect_int(),
                                          .index = bags.index.const_data_ptr<int64_t>(),
                                          .offsets = bags.offsets.const_data_ptr<int64_t>(),
                                          .sample_weight = data(bags.sample_weight),
                                          .weight = dense.const_data_ptr(),
                                          .y = y.data_ptr(),
                                          .size = mode == kMean ? kept.data_ptr<int64_t>() : nullptr,
                                          .winner = mode == kMax ? kept.data_ptr<int64_t>() : nullptr}));
  return {y, kept};
}

Tensor sample_weight_gradient(const Tensor& dy, const Tensor& weight, const Bags& bags, int64_t padding) {
  check_table(weight);
  const Tensor dense = weight.contiguous();
  Tensor found = at::empty(bags.index.sizes(), dy.options());
  check_entry(bags, cpu::embedding_sample_weights({.dtype = dtype_of(dy),
                                                   .V = weight.size(0),
                                                   .D = weight.size(1),
                                                   .B = bags.B,
                                                   .padding = padding,
                                                   .index = bags.index.const_data_ptr<int64_t>(),
                                                   .offsets = bags.offsets.const_data_ptr<int64_t>(),
                                                   .weight = dense.const_data_ptr(),
                                                   .dy = dy.const_data_ptr(),
                                                   .dsample_weight = found.data_ptr()}));
  return found;
}

Tensor table_gradient(const Tensor& dy, const Bags& bags, const Tensor& kept, int64_t rows, int64_t mode,
                      int64_t padding, bool by_frequency) {
  const int64_t D = dy.size(1);
  Tensor dw = at::empty({rows, D}, dy.options());
  if (mode == kMax) {
    check_sizes(kept, {bags.B, D}, bags.index, "winners");
    const Tensor winner = kept.contiguous();
    TORCH_CHECK(winner.numel() == 0 || winner.max().item<int64_t>() < rows, "fastnn: a winner beyond ", rows);
    cpu::embedding_max_backward({.dtype = dtype_of(dy),
                                 .V = rows,
                                 .D = D,
                                 .B = bags.B,
                                 .winner = winner.const_data_ptr<int64_t>(),
                                 .dy = dy.const_data_ptr(),
                                 .dw = dw.data_ptr()});
    return dw;
  }
  if (mode == kMean) check_sizes(kept, {bags.B}, bags.index, "sizes of bags");
  const Tensor size = kept.contiguous();
  check_entry(bags, cpu::embedding_backward({.dtype = dtype_of(dy),
                                             .V = rows,
                                             .D = D,
                                             .E = bags.index.numel(),
                                             .B = bags.B,
                                             .padding = padding,
                                             .by_frequency = by_frequency,
                                             .index = bags.index.const_data_ptr<int64_t>(),
                                             .offsets = bags.offsets.const_data_ptr<int64_t>(),
                                             .sample_weight = data(bags.sample_weight),
                                             .size = mode == kMean ? size.const_data_ptr<int64_t>() : nullptr,
                                             .dy = dy.const_data_ptr(),
                                             .dw = dw.data_ptr()}));
  return dw;
}

// weight: for the gradient of the sample weights; otherwise it may be missing.
Pair bag_backward_cpu(const Tensor& dy, const OptionalTensor& weight, const Tensor& indices,
                      const Tensor& offsets, const OptionalTensor& sample_weight, const Tensor& kept,
                      SymInt rows, int64_t mode, SymInt padding, bool by_frequency,
                      std::array<bool, 2> wanted) {
  const Bags bags(indices, offsets, sample_weight, compute_type(dy));
  TORCH_CHECK(dy.dim() == 2 && dy.size(0) == bags.B && dy.size(1) > 0 && rows.expect_int() > 0,
              "fastnn::_embedding_bag_backward: dy of ", dy.sizes());
  const Tensor dense = dy.contiguous();
  Tensor dw = at::empty({0}, dy.options()), dsample_weight = dw;
  if (wanted[0]) {
    dw = table_gradient(dense, bags, kept, rows.expect_int(), mode, padding.expect_int(), by_frequency);
  }
  if (wanted[1]) {
    TORCH_CHECK(weight && weight->dim() == 2 && weight->size(1) == dy.size(1) &&
                    weight->scalar_type() == dy.scalar_type(),
                "fastnn::_embedding_bag_backward: the table is missing");
    dsample_weight = sample_weight_gradient(dense, *weight, bags, padding.expect_int());
  }
  return {dw, dsample_weight};
}

Pair bag_meta(const Tensor& weight, const Tensor&, const Tensor& offsets, const OptionalTensor&, int64_t mode,
              SymInt, bool) {
  const SymInt B = offsets.sym_size(0) - 1, D = weight.sym_size(1);
  const auto integers = weight.options().dtype(at::kLong);
  return {at::empty_symint({B, D}, weight.options()),
          mode == kMax ? at::empty_symint({B, D}, integers)
                       : at::empty_symint({mode == kMean ? B : SymInt(0)}, integers)};
}
Pair bag_backward_meta(const Tensor& dy, const OptionalTensor&, const Tensor& indices, const Tensor&,
                       const OptionalTensor&, const Tensor&, SymInt rows, int64_t, SymInt, bool,
                       std::array<bool, 2> wanted) {
  const Tensor none = at::empty({0}, dy.options());
  return {wanted[0] ? at::empty_symint({rows, dy.sym_size(1)}, dy.options()) : none,
          wanted[1] ? at::empty_symint(indices.sym_sizes(), dy.options()) : none};
}

// --- autograd --------------------------------------------------------------------------------------------

Pair call_bag(const Tensor& weight, const Tensor& indices, const Tensor& offsets,
              const OptionalTensor& sample_weight, int64_t mode, SymInt padding, bool by_frequency) {
  static const auto op = handle<decltype(bag_cpu)>("fastnn::_embedding_bag");
  return op.call(weight, indices, offsets, sample_weight, mode, std::move(padding), by_frequency);
}
Pair call_bag_backward(const Tensor& dy, const OptionalTensor& weight, const Tensor& indices,
                       const Tensor& offsets, const OptionalTensor& sample_weight, const Tensor& kept,
                       SymInt rows, int64_t mode, SymInt padding, bool by_frequency,
                       std::array<bool, 2> wanted) {
  static const auto op = handle<decltype(bag_backward_cpu)>("fastnn::_embedding_bag_backward");
  return op.call(dy, weight, indices, offsets, sample_weight, kept, std::move(rows), mode, std::move(padding),
                 by_frequency, wanted);
}

OptionalTensor if_defined(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

struct BagGradient {
  static constexpr const char* kName = "EmbeddingBagBackward";
  static constexpr int kInputs = 2, kSaved = 5;
  using Arguments = std::tuple<SymInt, int64_t, SymInt, bool>;
  static variable_list backward(const variable_list& dy, const Saved<5>& saved, const Wanted<2>& wanted,
                                SymInt rows, int64_t mode, SymInt padding, bool by_frequency) {
    const auto& [weight, indices, offsets, sample_weight, kept] = saved;
    auto [dw, dsample_weight] =
        call_bag_backward(dy[0], if_defined(weight), indices, offsets, if_defined(sample_weight), kept,
                          std::move(rows), mode, std::move(padding), by_frequency, {wanted[0], wanted[1]});
    return {wanted[0] ? dw : Tensor(), wanted[1] ? dsample_weight : Tensor()};
  }
};

Pair bag_autograd(const Tensor& weight, const Tensor& indices, const Tensor& offsets,
                  const OptionalTensor& sample_weight, int64_t mode, SymInt padding, bool by_frequency) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_bag(weight, indices, offsets, sample_weight, mode, padding, by_frequency);
  };
  const Tensor weights = or_undefined(sample_weight);
  if (!records(weight, weights)) return run();
  const auto node =
      make_node<BagGradient>({weight.sym_size(0), mode, padding, by_frequency}, weight, weights);
  auto [y, kept] = run();
  // The table is read for the gradient of the weights alone; kept without need it could not be changed.
  node->output(y).keep(0, needs_grad(weights) ? weight : Tensor());
  node->keep(1, indices).keep(2, offsets).keep(3, weights).keep(4, kept);
  return {y, kept};
}

// For second derivatives: the gradients made of differentiable ops.
Pair bag_backward_autograd(const Tensor& dy, const OptionalTensor& weight, const Tensor& indices,
                           const Tensor& offsets, const OptionalTensor& sample_weight, const Tensor& kept,
                           SymInt rows, int64_t mode, SymInt padding, bool by_frequency,
                           std::array<bool, 2> wanted) {
  const Tensor table = or_undefined(weight), weights = or_undefined(sample_weight);
  if (!records(dy, table, weights)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_bag_backward(dy, weight, indices, offsets, sample_weight, kept, std::move(rows), mode,
                             std::move(padding), by_frequency, wanted);
  }
  Tensor dw = at::empty({0}, dy.options()), dsample_weight = dw;
  const Tensor none = at::zeros_symint({rows, dy.sym_size(1)}, dy.options());
  if (mode == kMax) {
    const Tensor rows_of = kept.clamp_min(0);
    return {none.scatter_add(0, rows_of, dy * (kept >= 0)), dsample_weight};
  }
  const Tensor index = indices.to(at::kLong), starts = offsets.to(at::kLong);
  const Tensor bag_of = at::bucketize(at::arange(indices.sym_size(0), index.options()), starts,
                                      /*out_int32=*/false, /*right=*/true) -
                        1;
  const Tensor counts = (index != padding).to(dy.scalar_type()).unsqueeze(1);
  const Tensor given = dy.index_select(0, bag_of) * counts;
  if (wanted[0]) {
    Tensor part = given;
    if (weights.defined()) part = part * weights.unsqueeze(1);
    if (mode == kMean) part = part / kept.clamp_min(1).index_select(0, bag_of).unsqueeze(1);
    if (by_frequency) {
      const Tensor frequency = at::zeros_symint({rows}, dy.options()).index_add(0, index, counts.squeeze(1));
      part = part / frequency.clamp_min(1).index_select(0, index).unsqueeze(1);
    }
    dw = none.index_add(0, index, part);
  }
  if (wanted[1]) dsample_weight = (given * table.index_select(0, index)).sum(1);
  return {dw, dsample_weight};
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_embedding_bag(Tensor weight, Tensor indices, Tensor offsets, Tensor? per_sample_weights, int mode, "
      "SymInt padding_idx, bool scale_grad_by_freq) -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_embedding_bag_backward(Tensor dy, Tensor? weight, Tensor indices, Tensor offsets, Tensor? "
      "per_sample_weights, Tensor kept, SymInt num_weights, int mode, SymInt padding_idx, bool "
      "scale_grad_by_freq, bool[2] wanted) -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_embedding_bag", bag_cpu);
  m.impl("_embedding_bag_backward", bag_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_embedding_bag", bag_meta);
  m.impl("_embedding_bag_backward", bag_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_embedding_bag", bag_autograd);
  m.impl("_embedding_bag_backward", bag_backward_autograd);
}

// --- front op --------------------------------------------------------------------------------------------

const Op embedding_bag_op("embedding_bag", "_embedding_bag", kFloating);

// Bags of one length without offsets, or offsets as the caller has them, in the private op's form.
Tensor closed_offsets(const Tensor& indices, const OptionalTensor& offsets, bool include_last) {
  const int64_t E = indices.numel();
  const auto options = indices.options().dtype(at::kLong);
  if (!offsets) return at::arange(0, E + 1, indices.size(1), options);
  const Tensor starts = offsets->to(at::kLong).contiguous();
  return include_last ? starts : at::cat({starts, at::full({1}, E, options)});
}

const char* why_not_bags(const Tensor& weight, const Tensor& indices, const OptionalTensor& offsets,
                         const OptionalTensor& sample_weight, int64_t mode, bool include_last) {
  if (const char* reason = why_not_table(embedding_bag_op, weight, indices)) return reason;
  if (!weight.is_cpu()) return "no CUDA kernel in this build";
  if (const char* reason = why_not(embedding_bag_op, weight, or_undefined(sample_weight))) return reason;
  if (sample_weight && (mode != kSum || sample_weight->numel() != indices.numel()))
    return "weights of another number than the indices, or of another mode than a sum";
  if (mode < kSum || mode > kMax) return "an unknown mode";
  if (!offsets) return indices.dim() == 2 && indices.size(1) > 0 ? nullptr : "bags without offsets";
  if (indices.dim() != 1 || offsets->dim() != 1 || offsets->numel() == 0) return "no bags";
  if (!is_plain(*offsets) || !offsets->is_cpu() || at::isFloatingType(offsets->scalar_type()))
    return "offsets that are not plain integers";
  return Bags::rising(closed_offsets(indices, offsets, include_last), indices.numel())
             ? nullptr
             : "offsets that do not rise to the end";
}

// padding_idx: none if negative.
Tensor embedding_bag(const Tensor& weight, const Tensor& indices, const OptionalTensor& offsets,
                     bool scale_grad_by_freq, int64_t mode, const OptionalTensor& per_sample_weights,
                     bool include_last_offset, int64_t padding_idx) {
  const auto flat = [](const OptionalTensor& t) {
    return t && t->defined() ? OptionalTensor(t->reshape({-1})) : std::nullopt;
  };
  return front(
      embedding_bag_op, why_not_bags(weight, indices, offsets, per_sample_weights, mode, include_last_offset),
      [&] {
        return std::get<0>(bag_autograd(weight, indices.reshape({-1}),
                                        closed_offsets(indices, offsets, include_last_offset),
                                        flat(per_sample_weights), mode, padding_idx, scale_grad_by_freq));
      },
      [&] {
        const Tensor starts =
            offsets ? *offsets : at::arange(0, indices.sym_numel(), indices.sym_size(1), indices.options());
        return std::get<0>(
            at::embedding_bag(weight, indices.reshape({-1}), starts, scale_grad_by_freq, mode,
                              /*sparse=*/false, flat(per_sample_weights), include_last_offset,
                              padding_idx < 0 ? std::nullopt : std::optional<int64_t>(padding_idx)));
      });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "embedding_bag(Tensor weight, Tensor indices, Tensor? offsets, bool scale_grad_by_freq, int mode, "
      "Tensor? per_sample_weights, bool include_last_offset, int padding_idx) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.impl("embedding_bag", c10::DispatchKey::CompositeImplicitAutograd, embedding_bag);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("embedding_bag", embedding_bag);
}

FASTNN_BIND(embedding_bag, m) {
  bind_front<embedding_bag>(m, "embedding_bag",
                            {"weight", "indices", "offsets", "scale_grad_by_freq", "mode",
                             "per_sample_weights", "include_last_offset", "padding_idx"});
}

}  // namespace
}  // namespace fastnn::ops
