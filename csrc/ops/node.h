// The autograd node of a private op: torch::autograd::Function without what it costs per call.
//
// Function keeps arguments in a map from strings to boxed values, describes every input and output for checks
// that a private op doesn't need, and wraps the outputs through several vectors: 1 us more forward and 2 us
// more backward than torch's own nodes take (ReLU on 64 x 100 takes 2 us in all). Here the arguments are a
// tuple.
//
//   struct Gradient {
//     static constexpr const char* kName = "ActivationBackward";
//     static constexpr int kInputs = 1, kSaved = 1;          // tensors of the forward call; tensors kept
//     using Arguments = std::tuple<int64_t, double, double>;
//     // dy: gradients of the outputs, undefined ones included; saved: in the order of save(); wanted: by
//     input. static variable_list backward(const variable_list& dy, const Saved<kSaved>&, const
//     Wanted<kInputs>&,
//                                   int64_t kind, double a, double b);
//   };
//
//   auto node = make_node<Gradient>({kind, a, b}, x);        // before the op runs
//   Tensor y = ...;                                          // below autograd
//   node->output(y).keep(0, y);
#pragma once
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <tuple>

#include "ops/tensors.h"
#include "ops/torch.h"

namespace fastnn::ops {

using torch::autograd::variable_list;
template <int n>
using Saved = std::array<Tensor, n>;
template <int n>
using Wanted = std::array<bool, n>;

// torch's pointers to nodes are intrusive since torch 2.13, and shared before. A template, so that only one
// branch has to compile.
template <class Node, class Base = torch::autograd::Node>
auto new_node(typename Node::Arguments arguments) {
  if constexpr (requires(Base& base) { base.shared_from_this(); }) {
    return std::shared_ptr<Node>(new Node(std::move(arguments)), [](Base* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Node>(std::move(arguments));
  }
}

template <class Gradient>
class GradientNode final : public torch::autograd::Node {
 public:
  using Arguments = typename Gradient::Arguments;
  static constexpr int kInputs = Gradient::kInputs, kSaved = Gradient::kSaved;

  explicit GradientNode(Arguments arguments) : arguments_(std::move(arguments)) {}

  // Declares the next output of the op.
  GradientNode& output(const Tensor& y) {
    torch::autograd::set_history(y, getptr());
    return *this;
  }
  // Declares x, overwritten by the op, as the next output.
  GradientNode& overwritten(const Tensor& x) {
    torch::autograd::impl::bump_version(x);
    torch::autograd::rebase_history(x, getptr());
    return *this;
  }
  // Keeps an input, an output (after output()) or anything else for the backward.
  GradientNode& keep(int i, const Tensor& t) {
    const bool is_output = t.defined() && t.grad_fn().get() == this;
    saved_[i] = torch::autograd::SavedVariable(t, is_output);
    return *this;
  }

  variable_list apply(variable_list&& dy) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return run(dy, unpacked(), wanted(), arguments_);
  }
  std::string name() const override { return Gradient::kName; }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& s : saved_) s.reset_data();
  }

  // Compiled autograd: what the compiled graph depends on, and the call with its proxies in place.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(std::string(Gradient::kName));
    std::apply([&](const auto&... a) { (args.collect(a), ...); }, arguments_);
    for (const auto& s : saved_) args.collect(s, /*is_output=*/true);
  }
  variable_list apply_with_saved(const variable_list& dy,
                                 torch::dynamo::autograd::SwapSavedVariables& proxies) override {
    using namespace torch::dynamo::autograd;
    for (auto& s : saved_) proxies.before(s);
    std::apply([&](auto&... a) { (proxies.before(a), ...); }, arguments_);
    PackedArgs packed;
    const Saved<kSaved> saved = unpacked();
    packed.pack(variable_list(saved.begin(), saved.end()));
    packed.pack(wanted());
    std::apply([&](const auto&... a) { (packed.pack(a), ...); }, arguments_);
    const auto values = std::move(packed).vec();
    std::vector<at::TypePtr> schema;
    for (const auto& value : values)
      schema.push_back(value.isTensor() ? at::TypePtr(at::TensorType::get()) : value.type());
    const auto& python = getPyCompilerInterface();
    const auto function =
        python->bind_function(proxies.get_py_compiler(), Gradient::kName, run_packed, schema,
                              /*is_custom_function=*/true, /*is_traceable=*/true);
    auto dx = python->call_function(
        proxies.get_py_compiler(), "apply_functional", function, dy, values,
        IValuePacker<std::vector<std::optional<InputMetadata>>>::pack(get_input_metadata(next_edges())));
    for (auto& s : saved_) proxies.after(s);
    std::apply([&](auto&... a) { (proxies.after(a), ...); }, arguments_);
    return dx;
  }

 private:
  Saved<kSaved> unpacked() {
    Saved<kSaved> tensors;
    for (int i = 0; i < kSaved; ++i) tensors[i] = saved_[i].unpack(getptr());
    return tensors;
  }
  Wanted<kInputs> wanted() const {
    Wanted<kInputs> wanted;
    for (int i = 0; i < kInputs; ++i) wanted[i] = task_should_compute_output(i);
    return wanted;
  }

  static variable_list run(const variable_list& dy, const Saved<kSaved>& saved, const Wanted<kInputs>& wanted,
                           const Arguments& arguments) {
    for (const Tensor& t : dy) {
      if (t.defined()) {
        return std::apply([&](const auto&... a) { return Gradient::backward(dy, saved, wanted, a...); },
                          arguments);
      }
    }
    return variable_list(kInputs);
  }
  static variable_list run_packed(const variable_list& dy, const std::vector<at::IValue>& values) {
    torch::dynamo::autograd::PackedArgs packed(values);
    const auto tensors = packed.unpack<variable_list>();
    Saved<kSaved> saved;
    std::copy_n(tensors.begin(), kSaved, saved.begin());
    const auto wanted = packed.unpack<Wanted<kInputs>>();
    return run(dy, saved, wanted, unpack_arguments(packed, static_cast<Arguments*>(nullptr)));
  }
  template <class... A>
  static Arguments unpack_arguments(torch::dynamo::autograd::PackedArgs& packed, std::tuple<A...>*) {
    return Arguments{packed.unpack<A>()...};  // braces: from left to right
  }

  std::array<torch::autograd::SavedVariable, kSaved> saved_;
  Arguments arguments_;
};

// True if a gradient of the op is to be recorded.
template <class... Tensors>
bool records(const Tensors&... inputs) {
  return at::GradMode::is_enabled() && (needs_grad(inputs) || ...);
}

// The node of a call on these inputs; an undefined one takes its place without an edge.
template <class Gradient, class... Tensors>
auto make_node(typename Gradient::Arguments arguments, const Tensors&... inputs) {
  static_assert(sizeof...(inputs) == Gradient::kInputs);
  using Node = GradientNode<Gradient>;
  TORCH_CHECK(!(has_tangent(inputs) || ...), "fastnn: ", Gradient::kName,
              ": forward-mode differentiation goes through the public op");
  auto edges = torch::autograd::collect_next_edges(inputs...);
  auto node = new_node<Node>(std::move(arguments));
  node->set_next_edges(std::move(edges));
  return node;
}

}  // namespace fastnn::ops
