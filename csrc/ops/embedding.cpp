// Rows of a table by index: front op, private op, autograd. Bags of them: embedding_bag.cpp.
#include "fastnn/embedding.h"

#include "ops/bind.h"
#include "ops/embedding.h"
#include "ops/front.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

using c10::SymInt;

// Of another size at the end: [*indices, D].
template <class Sizes, class Size>
auto with_row(const Sizes& indices, Size row) {
  auto sizes = indices.vec();
  sizes.push_back(row);
  return sizes;
}

Tensor embedding_cpu(const Tensor& weight, const Tensor& indices, SymInt, bool) {
  check_table(weight);
  const Tensor dense = weight.contiguous(), index = entries_of(indices);
  Tensor y = at::empty(with_row(indices.sizes(), weight.size(1)), weight.options());
  const int64_t bad = cpu::embedding_forward({.dtype = dtype_of(weight),
                                              .V = weight.size(0),
                                              .D = weight.size(1),
                                              .E = index.numel(),
                                              .index = index.const_data_ptr<int64_t>(),
                                              .weight = dense.const_data_ptr(),
                                              .y = y.data_ptr()});
  TORCH_CHECK_INDEX(bad < 0, "index out of range in self");
  return y;
}

Tensor embedding_backward_cpu(const Tensor& dy, const Tensor& indices, SymInt rows, SymInt padding,
                              bool by_frequency) {
  const Tensor index = entries_of(indices), dense = dy.contiguous();
  const int64_t V = rows.expect_int(), D = dy.dim() > 0 ? dy.size(-1) : 0;
  TORCH_CHECK(dy.is_floating_point() && V > 0 && D > 0 && dy.numel() == index.numel() * D,
              "fastnn::_embedding_backward: dy of ", dy.sizes(), " for indices of ", indices.sizes());
  Tensor dw = at::empty({V, D}, dy.options());
  const int64_t bad = cpu::embedding_backward({.dtype = dtype_of(dy),
                                               .V = V,
                                               .D = D,
                                               .E = index.numel(),
                                               .padding = padding.expect_int(),
                                               .by_frequency = by_frequency,
                                               .index = index.const_data_ptr<int64_t>(),
                                               .dy = dense.const_data_ptr(),
                                               .dw = dw.data_ptr()});
  TORCH_CHECK_INDEX(bad < 0, "index out of range in self");
  return dw;
}

Tensor embedding_meta(const Tensor& weight, const Tensor& indices, SymInt, bool) {
  return at::empty_symint(with_row(indices.sym_sizes(), weight.sym_size(1)), weight.options());
}
Tensor embedding_backward_meta(const Tensor& dy, const Tensor&, SymInt rows, SymInt, bool) {
  return at::empty_symint({rows, dy.sym_size(-1)}, dy.options());
}

// --- autograd --------------------------------------------------------------------------------------------

Tensor call_embedding(const Tensor& weight, const Tensor& indices, SymInt padding, bool by_frequency) {
  static const auto op = handle<decltype(embedding_cpu)>("fastnn::_embedding");
  return op.call(weight, indices, std::move(padding), by_frequency);
}
Tensor call_embedding_backward(const Tensor& dy, const Tensor& indices, SymInt rows, SymInt padding,
                               bool by_frequency) {
  static const auto op = handle<decltype(embedding_backward_cpu)>("fastnn::_embedding_backward");
  return op.call(dy, indices, std::move(rows), std::move(padding), by_frequency);
}

struct EmbeddingGradient {
  static constexpr const char* kName = "EmbeddingBackward";
  static constexpr int kInputs = 1, kSaved = 1;
  using Arguments = std::tuple<SymInt, SymInt, bool>;
  static variable_list backward(const variable_list& dy, const Saved<1>& saved, const Wanted<1>&, SymInt rows,
                                SymInt padding, bool by_frequency) {
    return {call_embedding_backward(dy[0], saved[0], std::move(rows), std::move(padding), by_frequency)};
  }
};

Tensor embedding_autograd(const Tensor& weight, const Tensor& indices, SymInt padding, bool by_frequency) {
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_embedding(weight, indices, padding, by_frequency);
  };
  if (!records(weight)) return run();
  const auto node = make_node<EmbeddingGradient>({weight.sym_size(0), padding, by_frequency}, weight);
  const Tensor y = run();
  node->output(y).keep(0, indices);
  return y;
}

Tensor embedding_backward_autograd(const Tensor& dy, const Tensor& indices, SymInt rows, SymInt padding,
                                   bool by_frequency) {
  if (records(dy)) return at::embedding_dense_backward_symint(dy, indices, rows, padding, by_frequency);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_embedding_backward(dy, indices, std::move(rows), std::move(padding), by_frequency);
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def("_embedding(Tensor weight, Tensor indices, SymInt padding_idx, bool scale_grad_by_freq) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "_embedding_backward(Tensor dy, Tensor indices, SymInt num_weights, SymInt padding_idx, bool "
      "scale_grad_by_freq) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_embedding", embedding_cpu);
  m.impl("_embedding_backward", embedding_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_embedding", embedding_meta);
  m.impl("_embedding_backward", embedding_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_embedding", embedding_autograd);
  m.impl("_embedding_backward", embedding_backward_autograd);
}

// --- front op --------------------------------------------------------------------------------------------

const Op embedding_op("embedding", "_embedding", kFloating);

const char* why_not_embedding(const Tensor& weight, const Tensor& indices, bool sparse) {
  if (const char* reason = why_not_table(embedding_op, weight, indices)) return reason;
  return sparse ? "a sparse gradient" : nullptr;
}

Tensor embedding(const Tensor& weight, const Tensor& indices, int64_t padding_idx, bool scale_grad_by_freq,
                 bool sparse) {
  return front(
      embedding_op, why_not_embedding(weight, indices, sparse),
      [&] { return embedding_autograd(weight, indices, padding_idx, scale_grad_by_freq); },
      [&] { return at::embedding(weight, indices, padding_idx, scale_grad_by_freq, sparse); });
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "embedding(Tensor weight, Tensor indices, int padding_idx, bool scale_grad_by_freq, bool sparse) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.impl("embedding", c10::DispatchKey::CompositeImplicitAutograd, embedding);
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  m.impl("embedding", embedding);
}

FASTNN_BIND(embedding, m) {
  bind_front<embedding>(m, "embedding", {"weight", "indices", "padding_idx", "scale_grad_by_freq", "sparse"});
}

}  // namespace
}  // namespace fastnn::ops
