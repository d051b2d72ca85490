// A run of layers as one operation (fastnn/chain.h), for fastnn.fuse: batch normalisation, activation,
// pooling, dropout, each optional. There is no front op: a Chain object is told the layers of one call and
// either runs them or says why not, and then the caller runs them one by one. So it serves eager mode only,
// and torch's ops need not be named here.
#include "fastnn/chain.h"

#include <algorithm>

#include "fastnn/activation_table.h"
#include "ops/activation.h"
#include "ops/activation_aten.h"
#include "ops/node.h"
#include "ops/parameters.h"
#include "ops/pooling.h"
#include "ops/random.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// The stages of a call, and as numbers for the schema and the autograd node.
struct Stages {
  enum Norm : int64_t { kNone, kRunning, kBatch };
  enum Layout : int64_t { kContiguous, kChannelsLast };
  enum Int {
    kNorm,
    kActivation,
    kPool,
    kPadCounts,
    kDivisor,
    kSeed,
    kOffset,
    kLayout,
    kResidual,
    kWindows,
    kInts = kWindows + Windows::kLength
  };
  enum Real { kEps, kA, kB, kP, kReals };

  std::vector<int64_t> ints = std::vector<int64_t>(kInts);
  std::vector<double> reals = std::vector<double>(kReals);

  Stages() { ints[kActivation] = -1; }
  Stages(at::IntArrayRef i, at::ArrayRef<double> r) : ints(i.vec()), reals(r.vec()) {
    TORCH_CHECK(i.size() == kInts && r.size() == kReals, "fastnn: a chain is ", +kInts, " and ", +kReals,
                " numbers");
    TORCH_CHECK(activation() < ActivationKind::kCount, "fastnn: no activation has number ", activation());
  }

  bool normalizes() const { return ints[kNorm] != kNone; }
  bool residual() const { return ints[kResidual] != 0; }
  bool training() const { return ints[kNorm] == kBatch; }
  int activation() const { return static_cast<int>(ints[kActivation]); }
  bool pools() const { return ints[kPool] != ChainStages::kNone; }
  bool is_max() const { return ints[kPool] == ChainStages::kMax; }
  bool channels_last() const { return ints[kLayout] == kChannelsLast; }
  Windows windows() const { return Windows::from(at::IntArrayRef(ints).slice(kWindows)); }

  // x as the kernels see it. Without normalisation and pooling the numbers lie in one order all through.
  BatchNormShape shape(const Tensor& x) const {
    const int64_t N = x.size(0), rest = x.numel() / std::max<int64_t>(1, N);
    if (!normalizes() && !pools()) return {.N = N, .C = 1, .L = rest};
    const int64_t C = x.size(1), L = rest / std::max<int64_t>(1, C);
    return {.N = N, .C = C, .L = L, .channels_last = L == 1 || channels_last()};
  }
  ChainStages kernel_stages(at::IntArrayRef input_size) const {
    ChainStages s;
    s.normalize = normalizes();
    s.residual = residual();
    s.activation = activation();
    s.a = reals[kA];
    s.b = reals[kB];
    s.pool = static_cast<ChainStages::Pool>(ints[kPool]);
    s.count_include_pad = ints[kPadCounts] != 0;
    s.divisor = ints[kDivisor];
    s.p = reals[kP];
    s.seed = static_cast<uint64_t>(ints[kSeed]);
    s.offset = static_cast<uint64_t>(ints[kOffset]);
    if (pools()) s.windows = pool_shape(input_size, windows(), channels_last());
    return s;
  }
  // A tensor for the output, or, of bytes or ints, for the window codes.
  Tensor empty_output(const Tensor& x, at::ScalarType type) const {
    if (!pools()) return fresh_like(x);
    const Windows w = windows();
    const auto size = w.output_size(x.sizes());
    return empty_pooled(c10::fromIntArrayRefUnchecked(size), x.options().dtype(type), w, channels_last());
  }
};

// --- the backward op -------------------------------------------------------------------------------------

// Gradients of input, weight, bias and residual; those that `mask` does not ask for are empty tensors.
Tensors backward_cpu(const Tensor& dy, const Tensor& x, const OptionalTensor& weight, const OptionalTensor&,
                     const OptionalTensor& y, const OptionalTensor& codes, const OptionalTensor& coefficients,
                     const OptionalTensor& mean, const OptionalTensor& spread, at::IntArrayRef ints,
                     at::ArrayRef<double> reals, std::array<bool, 4> mask) {
  const Stages stages(ints, reals);
  const auto type = compute_type(x);
  const Tensor like = stages.empty_output(x, x.scalar_type());
  check_like(dy, like, "dy");
  const Tensor dense_dy = with_layout_of(dy, like);
  const int64_t C = stages.normalizes() ? x.size(1) : 0;
  const Tensor w = vector_of(weight, C, type), m = vector_of(mean, C, type), s = vector_of(spread, C, type),
               k = vector_of(coefficients, 3 * C, type);
  Tensor dx = fresh_like(x), dw = empty({mask[1] ? C : 0}, type), db = empty({mask[2] ? C : 0}, type);
  Tensor dr = mask[3] ? fresh_like(x) : empty({0}, x.scalar_type());
  cpu::chain_backward({.stages = stages.kernel_stages(x.sizes()),
                       .norm = {.dtype = dtype_of(x),
                                .shape = stages.shape(x),
                                .x = x.const_data_ptr(),
                                .weight = data(w),
                                .mean = data(m),
                                .invstd = stages.training() ? data(s) : nullptr,
                                .var = stages.training() ? nullptr : data(s),
                                .dweight = mask[1] ? dw.data_ptr() : nullptr,
                                .dbias = mask[2] ? db.data_ptr() : nullptr,
                                .training = stages.training(),
                                .eps = stages.reals[Stages::kEps]},
                       .dy = dense_dy.const_data_ptr(),
                       .y = data(or_undefined(y)),
                       .codes = data(or_undefined(codes)),
                       .coefficients = data(k),
                       .dx = dx.data_ptr(),
                       .dresidual = mask[3] ? dr.data_ptr() : nullptr,
                       .wants_dx = mask[0]});
  const auto parameter_type = weight && weight->defined() ? weight->scalar_type() : type;
  if (parameter_type == type) return {dx, dw, db, dr};
  return {dx, dw.to(parameter_type), db.to(parameter_type), dr};
}

Tensors backward_meta(const Tensor&, const Tensor& x, const OptionalTensor& weight, const OptionalTensor&,
                      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                      const OptionalTensor&, const OptionalTensor&, at::IntArrayRef, at::ArrayRef<double>,
                      std::array<bool, 4> mask) {
  const auto type = weight && weight->defined() ? weight->scalar_type() : compute_type(x);
  const auto parameter = [&](bool wanted) {
    return at::empty_symint({wanted ? x.sym_size(1) : c10::SymInt(0)}, x.options().dtype(type));
  };
  return {at::empty_like(x), parameter(mask[1]), parameter(mask[2]),
          mask[3] ? at::empty_like(x) : at::empty({0}, x.options())};
}

Tensors chain_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                       const OptionalTensor& bias, const OptionalTensor& y, const OptionalTensor& codes,
                       const OptionalTensor& coefficients, const OptionalTensor& mean,
                       const OptionalTensor& spread, at::IntArrayRef ints, at::ArrayRef<double> reals,
                       std::array<bool, 4> mask) {
  static const auto op = handle<decltype(backward_cpu)>("fastnn::_chain_backward");
  return op.call(dy, x, weight, bias, y, codes, coefficients, mean, spread, ints, reals, mask);
}

// The chain once more by the layers' own private ops, which can be differentiated to any order.
Tensor layer_by_layer(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& mean, const OptionalTensor& spread, const Stages& stages) {
  Tensor y = x;
  const double eps = stages.reals[Stages::kEps];
  if (stages.training()) {
    static const auto op = handle<std::tuple<Tensor, Tensor, Tensor>(
        const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
        const OptionalTensor&, double, double)>("fastnn::_batch_norm_train");
    y = std::get<0>(op.call(y, weight, bias, std::nullopt, std::nullopt, 0, eps));
  } else if (stages.normalizes()) {
    static const auto op = handle<Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                         const Tensor&, const Tensor&, double)>("fastnn::_batch_norm_eval");
    y = op.call(y, weight, bias, *mean, *spread, eps);
  }
  if (stages.activation() >= 0) {
    static const auto op = handle<Tensor(const Tensor&, int64_t, double, double)>("fastnn::_activation");
    y = op.call(y, stages.activation(), stages.reals[Stages::kA], stages.reals[Stages::kB]);
  }
  if (stages.is_max()) {
    static const auto op =
        handle<std::tuple<Tensor, Tensor>(const Tensor&, at::IntArrayRef, bool)>("fastnn::_max_pool");
    y = std::get<0>(op.call(y, stages.windows().list(), false));
  } else if (stages.pools()) {
    static const auto op = handle<Tensor(const Tensor&, at::IntArrayRef, bool, int64_t)>("fastnn::_avg_pool");
    y = op.call(y, stages.windows().list(), stages.ints[Stages::kPadCounts] != 0,
                stages.ints[Stages::kDivisor]);
  }
  const double p = stages.reals[Stages::kP];
  if (p == 0) return y;
  static const auto op =
      handle<Tensor(const Tensor&, double, double, double, double, int64_t, int64_t, int64_t)>(
          "fastnn::_dropout");
  const auto drop = [&](const Tensor& t) {
    return op.call(t, p, 1 / (1 - p), 0, 0, 1, stages.ints[Stages::kSeed], stages.ints[Stages::kOffset]);
  };
  return stages.channels_last() ? drop(y.movedim(1, -1)).movedim(-1, 1) : drop(y);
}

Tensors backward_autograd(const Tensor& dy, const Tensor& x, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& y, const OptionalTensor& codes,
                          const OptionalTensor& coefficients, const OptionalTensor& mean,
                          const OptionalTensor& spread, at::IntArrayRef ints, at::ArrayRef<double> reals,
                          std::array<bool, 4> mask) {
  if (!records(dy, x, weight, bias)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return chain_backward(dy, x, weight, bias, y, codes, coefficients, mean, spread, ints, reals, mask);
  }
  Stages stages(ints, reals);
  Tensor dz = dy;
  if (stages.residual()) {  // to before the sum, through an activation whose gradient follows from y
    const int kind = stages.activation();
    if (kind >= 0) dz = activation_aten(kind).backward(dy, *y, true, reals[Stages::kA], reals[Stages::kB]);
    stages.ints[Stages::kActivation] = -1;
  }
  const Tensor inputs[] = {x, or_undefined(weight), or_undefined(bias)};
  variable_list wanted;
  for (int i = 0; i < 3; ++i)
    if (mask[i]) wanted.push_back(inputs[i]);
  Tensor gradients[4];
  if (mask[3]) gradients[3] = dz;
  if (wanted.empty()) return {Tensor(), Tensor(), Tensor(), gradients[3]};
  const Tensor z = layer_by_layer(x, weight, bias, mean, spread, stages);
  std::optional<pybind11::gil_scoped_release>
      no_gil;  // held while a compiler traces; the engine refuses that
  if (PyGILState_Check()) no_gil.emplace();
  const auto found =
      z.is_same(x) ? variable_list{dz}
                   : torch::autograd::grad({z}, wanted, {dz}, /*retain_graph=*/true, /*create_graph=*/true);
  for (size_t i = 0, next = 0; i < 3; ++i)
    if (mask[i]) gradients[i] = found[next++];
  return {gradients[0], gradients[1], gradients[2], gradients[3]};
}

TORCH_LIBRARY_FRAGMENT(fastnn, m) {
  m.def(
      "_chain_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? y, Tensor? codes, Tensor? "
      "coefficients, "
      "Tensor? mean, Tensor? spread, int[] ints, float[] reals, bool[4] mask) -> (Tensor, Tensor, Tensor, "
      "Tensor)",
      {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastnn, CPU, m) {
  m.impl("_chain_backward", backward_cpu);
}
TORCH_LIBRARY_IMPL(fastnn, Meta, m) {
  m.impl("_chain_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(fastnn, Autograd, m) {
  m.impl("_chain_backward", backward_autograd);
}

struct ChainGradient {
  static constexpr const char* kName = "ChainBackward";
  static constexpr int kInputs = 4, kSaved = 8;
  using Arguments = std::tuple<std::vector<int64_t>, std::vector<double>>;
  static variable_list backward(const variable_list& dy, const Saved<8>& saved, const Wanted<4>& wanted,
                                const std::vector<int64_t>& ints, const std::vector<double>& reals) {
    const auto& [x, weight, bias, y, codes, coefficients, mean, spread] = saved;
    // What comes before the sum is the residual's gradient, too: dy itself, or dx where nothing follows it.
    const Stages stages(ints, reals);
    const bool is_dy = stages.activation() < 0, is_dx = !stages.normalizes();
    auto [dx, dw, db, dr] = chain_backward(
        dy[0], x, weight, bias, y, codes, coefficients, mean, spread, ints, reals,
        {wanted[0] || (wanted[3] && is_dx), wanted[1], wanted[2], wanted[3] && !is_dy && !is_dx});
    if (wanted[3] && (is_dy || is_dx)) dr = is_dy ? dy[0] : dx;
    return {wanted[0] ? dx : Tensor(), wanted[1] ? dw : Tensor(), wanted[2] ? db : Tensor(),
            wanted[3] ? dr : Tensor()};
  }
};

// --- a call from Python ----------------------------------------------------------------------------------

const Op chain_op("chain", "_chain_backward", kFloating, /*autocast=*/true);

class Chain {
 public:
  void normalize(const OptionalTensor& running_mean, const OptionalTensor& running_var,
                 const OptionalTensor& weight, const OptionalTensor& bias, bool training, double momentum,
                 double eps) {
    running_mean_ = running_mean;
    running_var_ = running_var;
    weight_ = weight;
    bias_ = bias;
    momentum_ = momentum;
    stages_.ints[Stages::kNorm] = training ? Stages::kBatch : Stages::kRunning;
    stages_.reals[Stages::kEps] = eps;
  }
  void activate(const std::string& name, double a, double b) {
    int kind = 0;
    while (kind < ActivationKind::kCount && name != kActivationInfo[kind].name) ++kind;
    TORCH_CHECK_VALUE(kind < ActivationKind::kCount, "fastnn: no activation is called ", name);
    if (!kActivationInfo[kind].supports(a, b)) unfit_ = "no kernel for this parameter";
    stages_.ints[Stages::kActivation] = kind;
    stages_.reals[Stages::kA] = a;
    stages_.reals[Stages::kB] = b;
  }
  void max_pool(int64_t rank, const IntList& kernel_size, const IntList& stride, const IntList& padding,
                const IntList& dilation, bool ceil_mode) {
    pool_ = ChainStages::kMax;
    read_windows_ = [=](const Tensor& x, Windows& w) {
      return read_fixed(x, rank, kernel_size, stride, padding, dilation, ceil_mode, w);
    };
  }
  void avg_pool(int64_t rank, const IntList& kernel_size, const IntList& stride, const IntList& padding,
                bool ceil_mode, bool count_include_pad, int64_t divisor) {
    pool_ = ChainStages::kAverage;
    stages_.ints[Stages::kPadCounts] = count_include_pad;
    stages_.ints[Stages::kDivisor] = divisor;
    read_windows_ = [=](const Tensor& x, Windows& w) {
      return read_fixed(x, rank, kernel_size, stride, padding, 1, ceil_mode, w);
    };
  }
  void adaptive_pool(int64_t rank, const IntList& output_size, bool is_max) {
    pool_ = is_max ? ChainStages::kMax : ChainStages::kAverage;
    read_windows_ = [=](const Tensor& x, Windows& w) { return read_adaptive(x, rank, output_size, w); };
  }
  void add(const Tensor& residual) {
    residual_ = residual;
    stages_.ints[Stages::kResidual] = 1;
  }
  void drop(double p) { stages_.reals[Stages::kP] = p; }

  // The result, or None where the layers have to run one by one. owned: nobody else has x, which was computed
  // without being kept for a backward; it may be overwritten.
  OptionalTensor run(const Tensor& x, bool owned) {
    if (why_not_chain(x) != nullptr) return std::nullopt;
    note_native(chain_op);
    if (owned && only_activation() && records(x) && !x.is_view()) {
      const int kind = stages_.activation();
      if (kActivationInfo[kind].saves_y(dtype_of(x)))
        return activation_in_place(x, kind, stages_.reals[Stages::kA], stages_.reals[Stages::kB]);
    }
    if (stages_.reals[Stages::kP] > 0) {
      const Stream stream = next_stream();
      stages_.ints[Stages::kSeed] = stream.seed;
      stages_.ints[Stages::kOffset] = stream.offset;
    }
    return forward(x, owned);
  }

 private:
  bool only_activation() const {
    return stages_.activation() >= 0 && !stages_.normalizes() && !stages_.residual() &&
           pool_ == ChainStages::kNone && stages_.reals[Stages::kP] == 0;
  }
  const char* why_not_chain(const Tensor& x) {
    if (unfit_ != nullptr) return unfit_;
    if (const char* reason = why_not(chain_op, x)) return reason;
    if (!x.is_cpu()) return "no CUDA kernel in this build";
    if (x.dim() < 2 || x.numel() == 0) return "an input of fewer than two dimensions, or empty";
    const double p = stages_.reals[Stages::kP];
    if (!(p >= 0 && p < 1)) return "nothing is kept";
    const auto format = x.suggest_memory_format();
    if (!x.is_contiguous(format)) return "an input with gaps or a permutation";
    const bool last = format != at::MemoryFormat::Contiguous;
    stages_.ints[Stages::kLayout] = last ? Stages::kChannelsLast : Stages::kContiguous;
    if (const char* reason = why_not_norm(x)) return reason;
    if (const char* reason = why_not_residual(x)) return reason;
    return why_not_pool(x, last);
  }
  const char* why_not_norm(const Tensor& x) const {
    if (!stages_.normalizes()) return nullptr;
    const Tensor w = or_undefined(weight_), b = or_undefined(bias_), m = or_undefined(running_mean_),
                 v = or_undefined(running_var_);
    if (stages_.training() ? x.numel() == x.size(1) : !m.defined()) return "no statistics";
    if (m.defined() != v.defined()) return "one running statistic without the other";
    for (const Tensor* t : {&w, &b, &m, &v}) {
      if (t->defined() && (t->dim() != 1 || t->size(0) != x.size(1))) return "not one number per channel";
    }
    return why_not_parameters(chain_op, x, {&w, &b, &m, &v});
  }
  const char* why_not_residual(const Tensor& x) const {
    if (!stages_.residual()) return nullptr;
    if (const char* reason = why_not(chain_op, x, residual_)) return reason;
    if (residual_.sizes() != x.sizes() || residual_.strides() != x.strides())
      return "a residual of another layout";
    if (pool_ != ChainStages::kNone || stages_.reals[Stages::kP] > 0)
      return "a residual before a pooling or dropout";
    const int kind = stages_.activation();
    return kind < 0 || kActivationInfo[kind].saves_y(dtype_of(x)) ? nullptr
                                                                  : "the gradient does not follow from y";
  }
  const char* why_not_pool(const Tensor& x, bool channels_last) {
    if (pool_ == ChainStages::kNone) return nullptr;
    Windows w;
    if (const char* reason = read_windows_(x, w)) return reason;
    if (x.dim() != w.rank + 2) return "an input without a batch";
    if (keeps_channels_last(x, w, pool_ == ChainStages::kMax) != channels_last) return "the layout changes";
    stages_.ints[Stages::kPool] = pool_;
    std::copy(w.list().begin(), w.list().end(), stages_.ints.begin() + Stages::kWindows);
    return nullptr;
  }

  Tensor forward(const Tensor& x, bool owned) {
    RECORD_FUNCTION("fastnn::_chain", std::vector<c10::IValue>({x}));
    const bool recording = records(x, weight_, bias_, residual_), training = stages_.training();
    const auto type = compute_type(x);
    const int64_t C = stages_.normalizes() ? x.size(1) : 0;
    const Tensor w = vector_of(weight_, C, type), b = vector_of(bias_, C, type);
    Tensor mean = training ? empty({C}, type) : or_undefined(running_mean_),
           spread = training ? empty({C}, type) : or_undefined(running_var_);
    const Running running_m(running_mean_, C, type), running_v(running_var_, C, type);
    if (training) {
      announce_change(running_mean_);
      announce_change(running_var_);
    }
    using Node = std::decay_t<decltype(make_node<ChainGradient>({stages_.ints, stages_.reals}, x, weight_,
                                                                bias_, residual_))>;
    const Node node =
        recording ? make_node<ChainGradient>({stages_.ints, stages_.reals}, x, weight_, bias_, residual_)
                  : Node();

    Tensor y, codes, coefficients;
    {
      at::AutoDispatchBelowADInplaceOrView guard;
      y = owned && !recording && !stages_.pools() ? x : stages_.empty_output(x, x.scalar_type());
      const ChainStages stages = stages_.kernel_stages(x.sizes());
      if (recording && stages_.is_max())
        codes = stages_.empty_output(x, pool_codes_are_bytes(stages.windows) ? at::kByte : at::kInt);
      if (recording && stages_.normalizes()) coefficients = empty({3, C}, type);
      cpu::chain_forward({.stages = stages,
                          .norm = {.dtype = dtype_of(x),
                                   .shape = stages_.shape(x),
                                   .x = x.const_data_ptr(),
                                   .weight = data(w),
                                   .bias = data(b),
                                   .running_mean = running_m.pointer(),
                                   .running_var = running_v.pointer(),
                                   .save_mean = training ? mean.data_ptr() : nullptr,
                                   .save_invstd = training ? spread.data_ptr() : nullptr,
                                   .training = training,
                                   .momentum = momentum_,
                                   .eps = stages_.reals[Stages::kEps]},
                          .residual = data(residual_),
                          .y = y.data_ptr(),
                          .codes = data(codes),
                          .coefficients = data(coefficients)});
      if (training) {
        running_m.write_back();
        running_v.write_back();
      }
    }
    if (!recording) return y;
    node->output(y).keep(0, x).keep(1, or_undefined(weight_)).keep(2, or_undefined(bias_));
    if (stages_.residual() && stages_.activation() >= 0) node->keep(3, y);
    node->keep(4, codes).keep(5, coefficients).keep(6, mean).keep(7, spread);
    return y;
  }

  Stages stages_;
  OptionalTensor running_mean_, running_var_, weight_, bias_;
  Tensor residual_;
  double momentum_ = 0;
  ChainStages::Pool pool_ = ChainStages::kNone;
  std::function<const char*(const Tensor&, Windows&)> read_windows_;
  const char* unfit_ = nullptr;
};

FASTNN_BIND(chain, m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> no_gil;
  pybind11::class_<Chain>(m, "Chain")
      .def(pybind11::init<>())
      .def("normalize", &Chain::normalize)
      .def("activate", &Chain::activate)
      .def("max_pool", &Chain::max_pool)
      .def("avg_pool", &Chain::avg_pool)
      .def("adaptive_pool", &Chain::adaptive_pool)
      .def("add", &Chain::add)
      .def("drop", &Chain::drop)
      .def("run", &Chain::run, no_gil);
}

}  // namespace
}  // namespace fastnn::ops
