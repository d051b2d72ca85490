// The front ops of recurrent layers, with torch's names: whole stacks, of padded or packed sequences, and
// single cells.
#include "ops/front.h"
#include "ops/rnn.h"

namespace fastnn::ops {
namespace {

// The arguments of torch.lstm, torch.gru and torch.rnn_tanh; batch_sizes undefined: padded sequences.
struct Call {
  Tensor input, batch_sizes;
  std::vector<Tensor> hx;  // initial states; none: zeros
  std::vector<Tensor> params;
  bool has_biases;
  int64_t num_layers;
  double dropout;
  bool train, bidirectional, batch_first;

  bool packed() const { return batch_sizes.defined(); }
  int64_t directions() const { return bidirectional ? 2 : 1; }
  int64_t states() const { return num_layers * directions(); }
  // The sizes of the steps of packed sequences.
  std::vector<int64_t> active() const {
    if (!packed()) return {};
    const int64_t* sizes = batch_sizes.const_data_ptr<int64_t>();
    return {sizes, sizes + batch_sizes.numel()};
  }
};

// --- torch's ops -----------------------------------------------------------------------------------------

// torch wants initial states.
std::vector<Tensor> initial_states(const Call& c, RnnCell cell) {
  if (!c.hx.empty()) return c.hx;
  const int64_t N = c.packed() ? c.batch_sizes[0].item<int64_t>() : c.input.size(c.batch_first ? 0 : 1);
  const Tensor& w_hh = c.params[1];
  std::vector<Tensor> states = {at::zeros({c.states(), N, w_hh.size(1)}, c.input.options())};
  if (cell == RnnCell::kLstm)
    states.push_back(at::zeros({c.states(), N, w_hh.size(0) / 4}, c.input.options()));
  return states;
}

RnnState torch_stack(const Call& c, RnnCell cell) {
  const std::vector<Tensor> hx = initial_states(c, cell);
  if (cell == RnnCell::kLstm) {
    auto [y, hy, cy] = c.packed() ? at::lstm(c.input, c.batch_sizes, hx, c.params, c.has_biases, c.num_layers,
                                             c.dropout, c.train, c.bidirectional)
                                  : at::lstm(c.input, hx, c.params, c.has_biases, c.num_layers, c.dropout,
                                             c.train, c.bidirectional, c.batch_first);
    return {y, hy, cy};
  }
  const auto run = [&](auto padded, auto packed) {
    auto [y, hy] = c.packed() ? packed(c.input, c.batch_sizes, hx[0], c.params, c.has_biases, c.num_layers,
                                       c.dropout, c.train, c.bidirectional)
                              : padded(c.input, hx[0], c.params, c.has_biases, c.num_layers, c.dropout,
                                       c.train, c.bidirectional, c.batch_first);
    return RnnState{y, hy, Tensor()};
  };
  switch (cell) {
    case RnnCell::kGru: return run(at::_ops::gru_input::call, at::_ops::gru_data::call);
    case RnnCell::kRelu: return run(at::_ops::rnn_relu_input::call, at::_ops::rnn_relu_data::call);
    default: return run(at::_ops::rnn_tanh_input::call, at::_ops::rnn_tanh_data::call);
  }
}

// --- ours ------------------------------------------------------------------------------------------------

const char* why_not_batch_sizes(const Tensor& sizes, int64_t rows) {
  if (!sizes.device().is_cpu() || sizes.scalar_type() != at::kLong || sizes.dim() != 1 ||
      !sizes.is_contiguous())
    return "the form of the batch sizes";
  const int64_t* size = sizes.const_data_ptr<int64_t>();
  int64_t sum = 0;
  for (int64_t t = 0; t < sizes.numel(); ++t) {
    if (size[t] <= 0 || (t > 0 && size[t] > size[t - 1])) return "batch sizes that grow or are not positive";
    sum += size[t];
  }
  return sum == rows ? nullptr : "batch sizes that do not fit the input";
}

// Whether the weights of a layer fit together and to an input of C features.
const char* why_not_weights(at::TensorList w, bool biases, int64_t C, RnnCell cell) {
  const bool projects = static_cast<int64_t>(w.size()) > rnn_weight_count(biases, false);
  const Tensor &ih = w[0], &hh = w[1];
  const int64_t gates = rnn_blocks(cell).gates;
  if (ih.dim() != 2 || hh.dim() != 2 || ih.size(1) != C || hh.size(0) != ih.size(0) ||
      hh.size(0) % gates != 0)
    return "shapes";
  const int64_t rows = hh.size(0), H = rows / gates, P = hh.size(1);
  if (rows == 0 || P == 0) return "an empty weight";
  if (biases) {
    for (int i : {2, 3}) {
      if (w[i].dim() != 1 || w[i].size(0) != rows) return "shapes";
    }
  }
  if (!projects) return P == H ? nullptr : "shapes";
  const Tensor& hr = w[w.size() - 1];
  return cell == RnnCell::kLstm && hr.dim() == 2 && hr.size(0) == P && hr.size(1) == H ? nullptr : "shapes";
}

const char* why_not_stack(const Op& op, const Call& c, RnnCell cell) {
  std::vector<const Tensor*> tensors{&c.input};
  for (const Tensor& t : c.hx) tensors.push_back(&t);
  for (const Tensor& t : c.params) tensors.push_back(&t);
  if (const char* reason = why_not(op, c10::ArrayRef<const Tensor*>(tensors))) return reason;
  if (c.input.dim() != (c.packed() ? 2 : 3)) return "the number of dimensions";
  if (c.input.numel() == 0) return "an empty input";
  if (c.packed()) {
    if (const char* reason = why_not_batch_sizes(c.batch_sizes, c.input.size(0))) return reason;
  }
  if (c.num_layers < 1 || c.dropout < 0 || c.dropout > 1) return "the number of layers, or no probability";
  const int64_t sets = c.states(), count = static_cast<int64_t>(c.params.size()) / sets;
  const bool projects = count > rnn_weight_count(c.has_biases, false);
  if (static_cast<int64_t>(c.params.size()) != sets * count ||
      count != rnn_weight_count(c.has_biases, projects))
    return "the number of weights";
  int64_t C = c.input.size(-1);
  const at::TensorList params(c.params);
  for (int64_t set = 0; set < sets; ++set) {
    if (set > 0 && set % c.directions() == 0) C = params[1].size(1) * c.directions();
    const at::TensorList w = params.slice(set * count, count);
    if (const char* reason = why_not_weights(w, c.has_biases, C, cell)) return reason;
    if (w[1].sizes() != params[1].sizes()) return "shapes";
  }
  if (c.hx.empty()) return nullptr;
  if (c.hx.size() != (cell == RnnCell::kLstm ? 2 : 1)) return "the number of states";
  const int64_t N =
      c.packed() ? c.batch_sizes.const_data_ptr<int64_t>()[0] : c.input.size(c.batch_first ? 0 : 1);
  const int64_t widths[] = {params[1].size(1), params[1].size(0) / rnn_blocks(cell).gates};
  for (size_t i = 0; i < c.hx.size(); ++i) {
    if (c.hx[i].sizes() != at::IntArrayRef({sets, N, widths[i]})) return "the shape of a state";
  }
  return nullptr;
}

RnnState own_stack(const Call& c, RnnCell cell) {
  const bool transposed = c.batch_first && !c.packed();
  const std::vector<int64_t> active = c.active();
  const int64_t D = c.directions(), count = static_cast<int64_t>(c.params.size()) / c.num_layers;
  std::vector<Tensor> hy, cy;
  Tensor y = transposed ? c.input.transpose(0, 1) : c.input;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const auto state = [&](size_t i) {
      if (c.hx.size() <= i) return Tensor();
      return c.num_layers == 1 ? c.hx[i] : c.hx[i].narrow(0, layer * D, D);
    };
    const RnnState s = rnn_layer(y, state(0), state(1), at::TensorList(c.params).slice(layer * count, count),
                                 active, cell, c.bidirectional);
    y = s.y;
    hy.push_back(s.hy);
    cy.push_back(s.cy);
    if (c.dropout > 0 && c.train && layer + 1 < c.num_layers) {
      static const auto op = handle<Tensor(const Tensor&, double, bool)>("fastnn::dropout");
      y = op.call(y, c.dropout, true);
    }
  }
  const auto joined = [&](const std::vector<Tensor>& t) { return t.size() == 1 ? t[0] : at::cat(t); };
  return {transposed ? y.transpose(0, 1) : y, joined(hy), cell == RnnCell::kLstm ? joined(cy) : Tensor()};
}

const Op lstm_op("lstm", "_rnn_layer", kFloatDouble, /*autocast=*/true);
const Op gru_op("gru", "_rnn_layer", kFloatDouble, /*autocast=*/true);
const Op rnn_tanh_op("rnn_tanh", "_rnn_layer", kFloatDouble, /*autocast=*/true);
const Op rnn_relu_op("rnn_relu", "_rnn_layer", kFloatDouble, /*autocast=*/true);
const Op lstm_cell_op("lstm_cell", "_rnn_layer", kFloatDouble, /*autocast=*/true);
const Op gru_cell_op("gru_cell", "_rnn_layer", kFloatDouble, /*autocast=*/true);
const Op rnn_tanh_cell_op("rnn_tanh_cell", "_rnn_layer", kFloatDouble, /*autocast=*/true);
const Op rnn_relu_cell_op("rnn_relu_cell", "_rnn_layer", kFloatDouble, /*autocast=*/true);

template <RnnCell cell>
const Op& stack_op() {
  switch (cell) {
    case RnnCell::kLstm: return lstm_op;
    case RnnCell::kGru: return gru_op;
    case RnnCell::kRelu: return rnn_relu_op;
    default: return rnn_tanh_op;
  }
}
template <RnnCell cell>
const Op& cell_op() {
  switch (cell) {
    case RnnCell::kLstm: return lstm_cell_op;
    case RnnCell::kGru: return gru_cell_op;
    case RnnCell::kRelu: return rnn_relu_cell_op;
    default: return rnn_tanh_cell_op;
  }
}

// (y, hy), kLstm: (y, hy, cy).
template <RnnCell cell>
auto stack(const Tensor& input, const OptionalTensor& batch_sizes, at::TensorList hx, at::TensorList params,
           bool has_biases, int64_t num_layers, double dropout, bool train, bool bidirectional,
           bool batch_first) {
  const Call call{input,         or_undefined(batch_sizes),
                  hx.vec(),      params.vec(),
                  has_biases,    num_layers,
                  dropout,       train,
                  bidirectional, batch_first};
  const Op& op = stack_op<cell>();
  RnnState s = front(
      op, why_not_stack(op, call, cell), [&] { return own_stack(call, cell); },
      [&] { return torch_stack(call, cell); });
  if constexpr (cell == RnnCell::kLstm) {
    return std::make_tuple(s.y, s.hy, s.cy);
  } else {
    return std::make_tuple(s.y, s.hy);
  }
}

// --- cells -----------------------------------------------------------------------------------------------

struct CellCall {
  Tensor input;
  std::vector<Tensor> hx;  // none: zeros
  Tensor w_ih, w_hh;
  OptionalTensor b_ih, b_hh;
};

RnnState torch_cell(const CellCall& c, RnnCell cell) {
  std::vector<Tensor> hx = c.hx;
  if (hx.empty()) {
    const Tensor zeros = at::zeros({c.input.size(0), c.w_hh.size(1)}, c.input.options());
    hx = {zeros, zeros};
  }
  switch (cell) {
    case RnnCell::kLstm: {
      auto [h, cy] = at::lstm_cell(c.input, hx, c.w_ih, c.w_hh, c.b_ih, c.b_hh);
      return {h, h, cy};
    }
    case RnnCell::kGru: return {at::gru_cell(c.input, hx[0], c.w_ih, c.w_hh, c.b_ih, c.b_hh), {}, {}};
    case RnnCell::kRelu: return {at::rnn_relu_cell(c.input, hx[0], c.w_ih, c.w_hh, c.b_ih, c.b_hh), {}, {}};
    default: return {at::rnn_tanh_cell(c.input, hx[0], c.w_ih, c.w_hh, c.b_ih, c.b_hh), {}, {}};
  }
}

const char* why_not_cell(const Op& op, const CellCall& c, RnnCell cell) {
  const Tensor b_ih = or_undefined(c.b_ih), b_hh = or_undefined(c.b_hh);
  std::vector<const Tensor*> tensors{&c.input, &c.w_ih, &c.w_hh, &b_ih, &b_hh};
  for (const Tensor& t : c.hx) tensors.push_back(&t);
  if (const char* reason = why_not(op, c10::ArrayRef<const Tensor*>(tensors))) return reason;
  if (c.input.dim() != 2) return "the number of dimensions";
  if (c.input.numel() == 0) return "an empty input";
  if (b_ih.defined() != b_hh.defined()) return "one bias of two";
  const bool biases = b_ih.defined();
  const std::vector<Tensor> w =
      biases ? std::vector<Tensor>{c.w_ih, c.w_hh, b_ih, b_hh} : std::vector<Tensor>{c.w_ih, c.w_hh};
  if (const char* reason = why_not_weights(w, biases, c.input.size(1), cell)) return reason;
  if (!c.hx.empty() && c.hx.size() != (cell == RnnCell::kLstm ? 2 : 1)) return "the number of states";
  for (const Tensor& t : c.hx) {
    if (t.sizes() != at::IntArrayRef({c.input.size(0), c.w_hh.size(1)})) return "the shape of a state";
  }
  return nullptr;
}

// One step of packed sequences.
RnnState own_cell(const CellCall& c, RnnCell cell) {
  std::vector<Tensor> w{c.w_ih, c.w_hh};
  if (c.b_ih) w.insert(w.end(), {*c.b_ih, *c.b_hh});
  const auto state = [&](size_t i) { return c.hx.size() > i ? c.hx[i] : Tensor(); };
  RnnState s = rnn_layer(c.input, state(0), state(1), w, c.input.size(0), cell, false);
  if (cell == RnnCell::kLstm) s.cy = s.cy.squeeze(0);
  return s;
}

template <RnnCell cell>
RnnState run_cell(const CellCall& c) {
  const Op& op = cell_op<cell>();
  return front(
      op, why_not_cell(op, c, cell), [&] { return own_cell(c, cell); }, [&] { return torch_cell(c, cell); });
}

template <RnnCell cell>
Tensor single(const Tensor& input, const OptionalTensor& hx, const Tensor& w_ih, const Tensor& w_hh,
              const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
  return run_cell<cell>(
             {input, hx ? std::vector<Tensor>{*hx} : std::vector<Tensor>{}, w_ih, w_hh, b_ih, b_hh})
      .y;
}
std::tuple<Tensor, Tensor> lstm_cell(const Tensor& input, at::TensorList hx, const Tensor& w_ih,
                                     const Tensor& w_hh, const OptionalTensor& b_ih,
                                     const OptionalTensor& b_hh) {
  const RnnState s = run_cell<RnnCell::kLstm>({input, hx.vec(), w_ih, w_hh, b_ih, b_hh});
  return {s.y, s.cy};
}

// --- registration ----------------------------------------------------------------------------------------

// f(name, function) for each front op.
template <class F>
void for_each_stack(const F& f) {
  f("lstm", stack<RnnCell::kLstm>);
  f("gru", stack<RnnCell::kGru>);
  f("rnn_tanh", stack<RnnCell::kTanh>);
  f("rnn_relu", stack<RnnCell::kRelu>);
}
template <class F>
void for_each_cell(const F& f) {
  f("lstm_cell", lstm_cell);
  f("gru_cell", single<RnnCell::kGru>);
  f("rnn_tanh_cell", single<RnnCell::kTanh>);
  f("rnn_relu_cell", single<RnnCell::kRelu>);
}
bool is_lstm(const std::string& name) {
  return name.rfind("lstm", 0) == 0;
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  for_each_stack([&](const std::string& name, auto function) {
    m.def(
        (name +
         "(Tensor input, Tensor? batch_sizes, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, "
         "float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor" +
         (is_lstm(name) ? ", Tensor)" : ")"))
            .c_str(),
        {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
    m.impl(name.c_str(), c10::DispatchKey::CompositeImplicitAutograd, function);
  });
  for_each_cell([&](const std::string& name, auto function) {
    m.def((name + "(Tensor input, Tensor" + (is_lstm(name) ? "[]" : "?") +
           " hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh) -> " +
           (is_lstm(name) ? "(Tensor, Tensor)" : "Tensor"))
              .c_str(),
          {at::Tag::pt2_compliant_tag});
    m.impl(name.c_str(), c10::DispatchKey::CompositeImplicitAutograd, function);
  });
}
TORCH_LIBRARY_IMPL(fastnn, FuncTorchBatched, m) {
  for_each_stack([&](const char* name, auto function) { m.impl(name, function); });
  for_each_cell([&](const char* name, auto function) { m.impl(name, function); });
}

FASTNN_BIND(rnn_stack, m) {
  namespace py = pybind11;
  // The functions themselves take references to lists; pybind11 makes vectors.
  for_each_stack([&](const char* name, auto function) {
    m.def(
        name,
        [function](const Tensor& input, const OptionalTensor& batch_sizes, const std::vector<Tensor>& hx,
                   const std::vector<Tensor>& params, bool has_biases, int64_t num_layers, double dropout,
                   bool train, bool bidirectional, bool batch_first) {
          return function(input, batch_sizes, hx, params, has_biases, num_layers, dropout, train,
                          bidirectional, batch_first);
        },
        py::call_guard<py::gil_scoped_release>());
  });
  for_each_cell([&](const char* name, auto function) {
    using States = std::conditional_t<std::is_same_v<decltype(function), decltype(&lstm_cell)>,
                                      std::vector<Tensor>, OptionalTensor>;
    m.def(
        name,
        [function](const Tensor& input, const States& hx, const Tensor& w_ih, const Tensor& w_hh,
                   const OptionalTensor& b_ih,
                   const OptionalTensor& b_hh) { return function(input, hx, w_ih, w_hh, b_ih, b_hh); },
        py::call_guard<py::gil_scoped_release>());
  });
}

}  // namespace
}  // namespace fastnn::ops
