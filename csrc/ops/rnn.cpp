// Recurrent layers: the private op of one layer over the whole sequence, its backward, autograd.
#include "ops/rnn.h"

#include "ops/front.h"
#include "ops/node.h"

namespace fastnn::ops {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // y, hy, cy, what backward needs
using Gradients = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

constexpr int kWeights = 10;           // of two directions
constexpr int kInputs = 3 + kWeights;  // x, hx, cx
using Mask = std::array<bool, kInputs>;

// What the kernels read, checked and contiguous.
struct Operands {
  RnnSizes<int64_t> sizes;
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
  std::vector<int64_t> active, first;

  Operands(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList w,
           at::IntArrayRef batch, int64_t cell, bool bidirectional)
      : sizes(rnn_sizes<int64_t>(input, w, batch, cell, bidirectional)) {
    const auto& s = sizes;
    TORCH_CHECK(s.rows > 0 && s.N > 0 && s.C > 0 && s.H > 0 && s.P > 0,
                "fastnn::_rnn_layer: an empty tensor");
    TORCH_CHECK(s.projects || s.P == s.H, "fastnn::_rnn_layer: weight_hh of ", w[1].sizes());
    x = input.contiguous();
    const int64_t rows = s.blocks().gates * s.H, count = static_cast<int64_t>(w.size()) / s.D;
    for (int64_t i = 0; i < static_cast<int64_t>(w.size()); ++i) {
      const int64_t kind = i % count;
      const bool projection = s.projects && kind == count - 1;
      if (projection) {
        check_sizes(w[i], {s.P, s.H}, input, "weight_hr");
      } else if (kind < 2) {
        check_sizes(w[i], {rows, kind == 0 ? s.C : s.P}, input, kind == 0 ? "weight_ih" : "weight_hh");
      } else {
        check_sizes(w[i], {rows}, input, "bias");
      }
      weights.push_back(w[i].contiguous());
    }
    h0 = state(hx, s.P, "hx");
    c0 = s.lstm() ? state(cx, s.H, "cx") : Tensor();
    active = batch.vec();
    if (active.empty()) active.assign(input.size(0), s.N);
    int64_t row = 0;
    for (size_t t = 0; t < active.size(); ++t) {
      TORCH_CHECK(active[t] > 0 && (t == 0 || active[t] <= active[t - 1]),
                  "fastnn::_rnn_layer: batch sizes that grow or are not positive");
      first.push_back(row);
      row += active[t];
    }
    TORCH_CHECK(row == s.rows, "fastnn::_rnn_layer: batch sizes of ", row, " rows, not ", s.rows);
  }

  RnnShape shape() const {
    return {.cell = sizes.cell,
            .D = sizes.D,
            .T = static_cast<int64_t>(active.size()),
            .N = sizes.N,
            .C = sizes.C,
            .H = sizes.H,
            .P = sizes.P,
            .projects = sizes.projects,
            .rows = sizes.rows,
            .active = active.data(),
            .first = first.data()};
  }

  // f(member of RnnWeights or RnnWeightGradients, index into the list) for each weight of a direction.
  template <class Weights, class F>
  void for_each_weight(Weights& w, int64_t direction, const F& f) const {
    int64_t i = direction * static_cast<int64_t>(weights.size()) / sizes.D;
    f(w.w_ih, i++);
    f(w.w_hh, i++);
    if (sizes.biases) f(w.b_ih, i++);
    if (sizes.biases) f(w.b_hh, i++);
    if (sizes.projects) f(w.w_hr, i++);
  }
  void fill(RnnWeights (&w)[2]) const {
    for (int64_t d = 0; d < sizes.D; ++d)
      for_each_weight(w[d], d, [&](const void*& p, int64_t i) { p = weights[i].const_data_ptr(); });
  }

 private:
  Tensor state(const OptionalTensor& t, int64_t width, const char* name) const {
    if (!t || !t->defined()) return Tensor();
    TORCH_CHECK(t->numel() == sizes.D * sizes.N * width && t->scalar_type() == x.scalar_type(),
                "fastnn::_rnn_layer: ", name, " of ", t->sizes(), " and ", t->scalar_type());
    return t->contiguous();
  }
};

const void* const_data(const Tensor& t) {
  return t.defined() && t.numel() > 0 ? t.const_data_ptr() : nullptr;
}

// --- CPU and Meta kernels of the private ops -------------------------------------------------------------

Outputs rnn_layer_cpu(const Tensor& x, const OptionalTensor& hx, const OptionalTensor& cx,
                      at::TensorList weights, at::IntArrayRef active, int64_t cell, bool bidirectional,
                      bool keep) {
  const Operands t(x, hx, cx, weights, active, cell, bidirectional);
  const auto& s = t.sizes;
  Tensor y = at::empty(s.y, x.options()), hy = at::empty(s.state(), x.options()),
         cy = at::empty(s.cells(), x.options()), kept = at::empty(s.kept(keep), x.options());
  RnnParams p{.dtype = dtype_of(x),
              .shape = t.shape(),
              .x = t.x.const_data_ptr(),
              .h0 = const_data(t.h0),
              .c0 = const_data(t.c0),
              .y = y.data_ptr(),
              .hy = hy.data_ptr(),
              .cy = data(cy),
              .kept = kept.numel() > 0 ? kept.data_ptr() : nullptr};
  t.fill(p.weights);
  cpu::rnn_forward(p);
  return {y, hy, cy, kept};
}

// A gradient of the sizes of `like`, or an empty tensor.
Tensor gradient(const Tensor& like, bool wanted) {
  return wanted ? at::empty_symint(like.sym_sizes(), like.options()) : at::empty({0}, like.options());
}
Tensor gradient(const OptionalTensor& like, const Tensor& x, bool wanted) {
  return like && like->defined() ? gradient(*like, wanted) : at::empty({0}, x.options());
}
void* wanted_data(const Tensor& gradient) {
  return gradient.numel() > 0 ? gradient.data_ptr() : nullptr;
}

Gradients allocate_gradients(const Tensor& x, const OptionalTensor& hx, const OptionalTensor& cx,
                             at::TensorList weights, const Mask& wanted) {
  std::vector<Tensor> dw;
  for (size_t i = 0; i < weights.size(); ++i) dw.push_back(gradient(weights[i], wanted[3 + i]));
  return {gradient(x, wanted[0]), gradient(hx, x, wanted[1]), gradient(cx, x, wanted[2]), std::move(dw)};
}

Gradients rnn_layer_backward_cpu(const OptionalTensor& dy, const OptionalTensor& dhy,
                                 const OptionalTensor& dcy, const Tensor& x, const OptionalTensor& hx,
                                 const OptionalTensor& cx, at::TensorList weights, const Tensor& y,
                                 const Tensor& kept, at::IntArrayRef active, int64_t cell, bool bidirectional,
                                 Mask wanted) {
  const Operands t(x, hx, cx, weights, active, cell, bidirectional);
  const auto& s = t.sizes;
  check_sizes(y, s.y, x, "y");
  check_sizes(kept, s.kept(true), x, "kept");
  const auto incoming = [&](const OptionalTensor& g, at::IntArrayRef sizes, const char* name) {
    if (!g || !g->defined() || g->numel() == 0) return Tensor();
    check_sizes(*g, sizes, x, name);
    return g->contiguous();
  };
  const Tensor slope = incoming(dy, s.y, "dy"), slope_h = incoming(dhy, s.state(), "dhy"),
               slope_c = s.lstm() ? incoming(dcy, s.cells(), "dcy") : Tensor();
  const Tensor dense_y = y.contiguous(), dense_kept = kept.contiguous();
  auto gradients = allocate_gradients(x, hx, cx, weights, wanted);
  const auto& [dx, dhx, dcx, dw] = gradients;
  RnnBackwardParams p{.dtype = dtype_of(x),
                      .shape = t.shape(),
                      .x = t.x.const_data_ptr(),
                      .h0 = const_data(t.h0),
                      .c0 = const_data(t.c0),
                      .y = dense_y.const_data_ptr(),
                      .kept = const_data(dense_kept),
                      .dy = const_data(slope),
                      .dhy = const_data(slope_h),
                      .dcy = const_data(slope_c),
                      .dx = wanted_data(dx),
                      .dh0 = wanted_data(dhx),
                      .dc0 = s.lstm() ? wanted_data(dcx) : nullptr};
  t.fill(p.weights);
  const std::vector<Tensor>& slopes = dw;
  for (int64_t d = 0; d < s.D; ++d)
    t.for_each_weight(p.gradients[d], d, [&](void*& g, int64_t i) { g = wanted_data(slopes[i]); });
  cpu::rnn_backward(p);
  return gradients;
}

Outputs rnn_layer_meta(const Tensor& x, const OptionalTensor&, const OptionalTensor&, at::TensorList weights,
                       at::IntArrayRef active, int64_t cell, bool bidirectional, bool keep) {
  const auto s = rnn_sizes<c10::SymInt>(x, weights, active, cell, bidirectional);
  const auto empty = [&](const std::vector<c10::SymInt>& sizes) {
    return at::empty_symint(sizes, x.options());
  };
  return {empty(s.y), empty(s.state()), empty(s.cells()), empty(s.kept(keep))};
}

Gradients rnn_layer_backward_meta(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                  const Tensor& x, const OptionalTensor& hx, const OptionalTensor& cx,
                                  at::TensorList weights, const Tensor&, const Tensor&, at::IntArrayRef,
                                  int64_t, bool, Mask wanted) {
  return allocate_gradients(x, hx, cx, weights, wanted);
}

// --- autograd --------------------------------------------------------------------------------------------

Outputs call_layer(const Tensor& x, const OptionalTensor& hx, const OptionalTensor& cx,
                   at::TensorList weights, at::IntArrayRef active, int64_t cell, bool bidirectional,
                   bool keep) {
  static const auto op = handle<decltype(rnn_layer_cpu)>("fastnn::_rnn_layer");
  return op.call(x, hx, cx, weights, active, cell, bidirectional, keep);
}

Gradients call_layer_backward(const OptionalTensor& dy, const OptionalTensor& dhy, const OptionalTensor& dcy,
                              const Tensor& x, const OptionalTensor& hx, const OptionalTensor& cx,
                              at::TensorList weights, const Tensor& y, const Tensor& kept,
                              at::IntArrayRef active, int64_t cell, bool bidirectional, Mask wanted) {
  static const auto op = handle<decltype(rnn_layer_backward_cpu)>("fastnn::_rnn_layer_backward");
  return op.call(dy, dhy, dcy, x, hx, cx, weights, y, kept, active, cell, bidirectional, wanted);
}

OptionalTensor optional(const Tensor& t) {
  return t.defined() ? OptionalTensor(t) : std::nullopt;
}

struct RnnGradient {
  static constexpr const char* kName = "RnnBackward";
  static constexpr int kInputs = ops::kInputs, kSaved = ops::kInputs + 2;
  using Arguments = std::tuple<std::vector<int64_t>, int64_t, bool>;
  static variable_list backward(const variable_list& dy, const Saved<kSaved>& saved,
                                const Wanted<kInputs>& wanted, const std::vector<int64_t>& active,
                                int64_t cell, bool bidirectional) {
    std::vector<Tensor> weights;
    for (int i = 0; i < kWeights; ++i) {
      if (saved[3 + i].defined()) weights.push_back(saved[3 + i]);
    }
    auto [dx, dhx, dcx, dw] = call_layer_backward(
        optional(dy[0]), optional(dy[1]), optional(dy[2]), saved[0], optional(saved[1]), optional(saved[2]),
        weights, saved[kInputs], saved[kInputs + 1], active, cell, bidirectional, wanted);
    variable_list out(kInputs);
    const Tensor first[] = {dx, dhx, dcx};
    for (int i = 0; i < 3; ++i) {
      if (wanted[i]) out[i] = first[i];
    }
    for (size_t i = 0; i < dw.size(); ++i) {
      if (wanted[3 + i]) out[3 + i] = dw[i];
    }
    return out;
  }
};

Outputs rnn_layer_autograd(const Tensor& x, const OptionalTensor& hx, const OptionalTensor& cx,
                           at::TensorList weights, at::IntArrayRef active, int64_t cell, bool bidirectional,
                           bool keep) {
  TORCH_CHECK(weights.size() <= kWeights, "fastnn::_rnn_layer: ", weights.size(), " weights");
  const bool recording = records(x, hx, cx) || (at::GradMode::is_enabled() &&
                                                std::any_of(weights.begin(), weights.end(),
                                                            [](const Tensor& w) { return needs_grad(w); }));
  const auto run = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_layer(x, hx, cx, weights, active, cell, bidirectional, keep || recording);
  };
  if (!recording) return run();
  std::array<Tensor, kWeights> w;
  std::copy(weights.begin(), weights.end(), w.begin());
  const auto node = std::apply(
      [&](const auto&... each) {
        return make_node<RnnGradient>({active.vec(), cell, bidirectional}, x, or_undefined(hx),
                                      or_undefined(cx), each...);
      },
      w);
  auto [y, hy, cy, kept] = run();
  node->output(y).output(hy).output(cy);
  node->keep(0, x).keep(1, or_undefined(hx)).keep(2, or_undefined(cx));
  for (int i = 0; i < kWeights; ++i) node->keep(3 + i, w[i]);
  node->keep(kInputs, y).keep(kInputs + 1, kept);
  return {y, hy, cy, kept};
}

// Second derivatives: the gradient of the replay, recorded.
Gradients rnn_layer_backward_autograd(const OptionalTensor& dy, const OptionalTensor& dhy,
                                      const OptionalTensor& dcy, const Tensor& x, const OptionalTensor& hx,
                                      const OptionalTensor& cx, at::TensorList weights, const Tensor& y,
                                      const Tensor& kept, at::IntArrayRef active, int64_t cell,
                                      bool bidirectional, Mask wanted) {
  const auto needs = [](const Tensor& w) { return needs_grad(w); };
  const bool recording = records(dy, dhy, dcy, x, hx, cx) ||
                         (at::GradMode::is_enabled() && std::any_of(weights.begin(), weights.end(), needs));
  if (!recording) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_layer_backward(dy, dhy, dcy, x, hx, cx, weights, y, kept, active, cell, bidirectional,
                               wanted);
  }
  // Aliases: one tensor in two places has a gradient for each.
  variable_list inputs;
  std::vector<int> places;
  const auto alias = [&](const Tensor& t, int place) {
    if (!t.defined()) return t;
    const Tensor copy = t.requires_grad() ? at::alias(t) : t.detach().requires_grad_(wanted[place]);
    if (wanted[place]) {
      inputs.push_back(copy);
      places.push_back(place);
    }
    return copy;
  };
  const Tensor x2 = alias(x, 0), hx2 = alias(or_undefined(hx), 1), cx2 = alias(or_undefined(cx), 2);
  std::vector<Tensor> weights2;
  for (size_t i = 0; i < weights.size(); ++i) weights2.push_back(alias(weights[i], 3 + static_cast<int>(i)));
  const variable_list again = rnn_replay(x2, hx2, cx2, weights2, active, cell, bidirectional);
  variable_list outputs, slopes;
  const OptionalTensor* incoming[] = {&dy, &dhy, &dcy};
  for (size_t i = 0; i < again.size(); ++i) {
    if (!*incoming[i] || !(*incoming[i])->defined()) continue;
    outputs.push_back(again[i]);
    slopes.push_back(**incoming[i]);
  }
  variable_list found;
  if (!inputs.empty()) {
    std::optional<pybind11::gil_scoped_release>
        no_gil;  // a caller from Python holds it, autograd's own threads don't
    if (PyGILState_Check()) no_gil.emplace();
    found = torch::autograd::grad(outputs, inputs, slopes, /*retain_graph=*/true, /*create_graph=*/true,
                                  /*allow_unused=*/true);
  }
  std::vector<Tensor> all(3 + weights.size());
  for (size_t i = 0; i < found.size(); ++i)
    all[places[i]] = found[i].defined() ? found[i] : at::zeros_like(inputs[i]);
  for (Tensor& t : all) {
    if (!t.defined()) t = at::empty({0}, x.options());
  }
  return {all[0], all[1], all[2], std::vector<Tensor>(all.begin() + 3, all.end())};
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_rnn_layer(Tensor x, Tensor? hx, Tensor? cx, Tensor[] weights, int[] active, int cell, bool "
      "bidirectional, "
      "bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_rnn_layer_backward(Tensor? dy, Tensor? dhy, Tensor? dcy, Tensor x, Tensor? hx, Tensor? cx, Tensor[] "
      "weights, "
      "Tensor y, Tensor kept, int[] active, int cell, bool bidirectional, bool[13] wanted) -> (Tensor, "
      "Tensor, Tensor, "
      "Tensor[])",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_rnn_layer", rnn_layer_cpu);
  m.impl("_rnn_layer_backward", rnn_layer_backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_rnn_layer", rnn_layer_meta);
  m.impl("_rnn_layer_backward", rnn_layer_backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_rnn_layer", rnn_layer_autograd);
  m.impl("_rnn_layer_backward", rnn_layer_backward_autograd);
}

}  // namespace

RnnState rnn_layer(const Tensor& x, const Tensor& hx, const Tensor& cx, at::TensorList weights,
                   at::IntArrayRef active, RnnCell cell, bool bidirectional) {
  auto [y, hy, cy, kept] = rnn_layer_autograd(x, optional(hx), optional(cx), weights, active,
                                              static_cast<int64_t>(cell), bidirectional, /*keep=*/false);
  return {y, hy, cy};
}

}  // namespace fastnn::ops
