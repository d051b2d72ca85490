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

// --- shapes ----------------------------------------------------------------------------------------------

// Int: SymInt on Meta.
template <class Int>
struct Sizes {
  RnnCell cell;
  int64_t D;
  bool biases, projects;
  Int N, C, H, P, rows;
  std::vector<Int> y;  // sizes of the output

  bool lstm() const { return cell == RnnCell::kLstm; }
  RnnBlocks blocks() const { return rnn_blocks(cell); }
  std::vector<Int> state() const { return {Int(D), N, P}; }
  std::vector<Int> cells() const {
    return lstm() ? std::vector<Int>{Int(D), N, H} : std::vector<Int>{Int(0)};
  }
  std::vector<Int> kept(bool keep) const {
    if (!keep || blocks().kept == 0) return {Int(0)};
    return {Int(D), rows, H * blocks().kept};
  }
};

template <class Int>
c10::ArrayRef<Int> sizes_of(const Tensor& t) {
  if constexpr (std::is_same_v<Int, c10::SymInt>) {
    return t.sym_sizes();
  } else {
    return t.sizes();
  }
}

template <class Int>
Sizes<Int> make_sizes(const Tensor& x, at::TensorList weights, at::IntArrayRef active, int64_t cell,
                      bool bidirectional) {
  TORCH_CHECK(cell >= 0 && cell <= static_cast<int64_t>(RnnCell::kGru),
              "fastnn::_rnn_layer: no cell has number ", cell);
  Sizes<Int> s;
  s.cell = static_cast<RnnCell>(cell);
  s.D = bidirectional ? 2 : 1;
  const int64_t count = static_cast<int64_t>(weights.size()) / s.D;
  TORCH_CHECK(static_cast<int64_t>(weights.size()) == count * s.D && count >= 2 && count <= 5,
              "fastnn::_rnn_layer: ", weights.size(), " weights");
  s.biases = count >= 4;
  s.projects = count % 2 == 1;
  TORCH_CHECK(s.lstm() || !s.projects, "fastnn::_rnn_layer: a projection without an LSTM");
  TORCH_CHECK(x.dim() == (active.empty() ? 3 : 2), "fastnn::_rnn_layer: an input of ", x.dim(),
              " dimensions");
  const auto xs = sizes_of<Int>(x), hh = sizes_of<Int>(weights[1]);
  TORCH_CHECK(hh.size() == 2, "fastnn::_rnn_layer: a weight of ", hh.size(), " dimensions");
  s.N = active.empty() ? xs[1] : Int(active[0]);
  s.C = xs.back();
  s.rows = active.empty() ? xs[0] * xs[1] : xs[0];
  s.H = hh[0] / s.blocks().gates;
  s.P = hh[1];
  s.y.assign(xs.begin(), xs.end());
  s.y.back() = s.P * s.D;
  return s;
}

// What the kernels read, checked and contiguous.
struct Operands {
  Sizes<int64_t> sizes;
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
  std::vector<int64_t> active, first;

  Operands(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx, at::TensorList w,
           at::IntArrayRef batch, int64_t cell, bool bidirectional)
      : sizes(make_sizes<int64_t>(input, w, batch, cell, bidirectional)) {
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
  const auto s = make_sizes<c10::SymInt>(x, weights, active, cell, bidirectional);
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

// The layer again, step by step from torch's differentiable ops.
class Replay {
 public:
  Replay(const Tensor& x, const Tensor& hx, const Tensor& cx, at::TensorList weights, at::IntArrayRef active,
         int64_t cell, bool bidirectional)
      : s_(make_sizes<int64_t>(x, weights, active, cell, bidirectional)),
        weights_(weights),
        active_(active.vec()) {
    if (active_.empty()) active_.assign(x.size(0), s_.N);
    std::vector<Tensor> y, hy, cy;
    for (int64_t d = 0; d < s_.D; ++d) {
      const auto state = [&](const Tensor& t, int64_t width) {
        return t.defined() ? t.reshape({s_.D, s_.N, width}).select(0, d)
                           : at::zeros({s_.N, width}, x.options());
      };
      direction(d, x.reshape({s_.rows, s_.C}).split_with_sizes(active_), state(hx, s_.P),
                s_.lstm() ? state(cx, s_.H) : Tensor());
      y.push_back(at::cat(y_));
      hy.push_back(hy_);
      cy.push_back(cy_);
    }
    outputs = {at::cat(y, -1).reshape(s_.y), at::stack(hy)};
    if (s_.lstm()) outputs.push_back(at::stack(cy));
  }

  variable_list outputs;  // y, hy, cy

 private:
  void direction(int64_t d, const std::vector<Tensor>& x, const Tensor& h0, const Tensor& c0) {
    const int64_t T = static_cast<int64_t>(active_.size()),
                  count = static_cast<int64_t>(weights_.size()) / s_.D;
    const at::TensorList w = weights_.slice(d * count, count);
    y_.assign(T, Tensor());
    // The sequences of a step: those that go on from the step before, then those that begin.
    const auto join = [](const Tensor& before, const Tensor& initial, int64_t carried, int64_t n) {
      return at::cat({before.narrow(0, 0, carried), initial.narrow(0, carried, n - carried)});
    };
    Tensor h = h0, c = c0;
    std::vector<Tensor> last_h, last_c;
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = d == 0 ? i : T - 1 - i, n = active_[t];
      const int64_t carried = i == 0 ? 0 : std::min(n, active_[d == 0 ? t - 1 : t + 1]);
      const int64_t going_on = d == 1 ? (t > 0 ? n : 0) : (t + 1 < T ? active_[t + 1] : 0);
      h = join(h, h0, carried, n);
      if (c.defined()) c = join(c, c0, carried, n);
      step(x[t], w, h, c);
      y_[t] = h;
      last_h.insert(last_h.begin(), h.narrow(0, going_on, n - going_on));
      if (c.defined()) last_c.insert(last_c.begin(), c.narrow(0, going_on, n - going_on));
    }
    hy_ = at::cat(last_h);
    if (c.defined()) cy_ = at::cat(last_c);
  }

  void step(const Tensor& x, at::TensorList w, Tensor& h, Tensor& c) const {
    const auto bias = [&](int i) { return s_.biases ? OptionalTensor(w[i]) : std::nullopt; };
    const Tensor from_x = at::linear(x, w[0], bias(2)), from_h = at::linear(h, w[1], bias(3));
    if (s_.cell == RnnCell::kGru) {
      const auto a = from_x.chunk(3, 1), b = from_h.chunk(3, 1);
      const Tensor r = (a[0] + b[0]).sigmoid(), z = (a[1] + b[1]).sigmoid(), n = (a[2] + r * b[2]).tanh();
      h = n + z * (h - n);
      return;
    }
    const Tensor sums = from_x + from_h;
    if (!s_.lstm()) {
      h = s_.cell == RnnCell::kTanh ? sums.tanh() : sums.relu();
      return;
    }
    const auto gates = sums.chunk(4, 1);
    c = gates[1].sigmoid() * c + gates[0].sigmoid() * gates[2].tanh();
    h = gates[3].sigmoid() * c.tanh();
    if (s_.projects) h = at::linear(h, w[w.size() - 1]);
  }

  Sizes<int64_t> s_;
  at::TensorList weights_;
  std::vector<int64_t> active_;
  std::vector<Tensor> y_;
  Tensor hy_, cy_;
};

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
  const Replay replay(x2, hx2, cx2, weights2, active, cell, bidirectional);
  variable_list outputs, slopes;
  const OptionalTensor* incoming[] = {&dy, &dhy, &dcy};
  for (size_t i = 0; i < replay.outputs.size(); ++i) {
    if (!*incoming[i] || !(*incoming[i])->defined()) continue;
    outputs.push_back(replay.outputs[i]);
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
