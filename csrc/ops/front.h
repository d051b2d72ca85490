// The one place that decides whether a call runs on fastnn's kernels or on torch's own op.
//
// Each operation has a front op, `fastnn::relu`, that asks why_not(): plain dense tensors of a
// supported dtype on a supported device go on to the private op, `fastnn::_activation`; everything else
// (functorch transforms, forward-mode AD, subclasses, dispatch modes, nested, sparse, meta, other
// dtypes, wrong shapes) goes to the at:: op, which gives torch's answer or torch's error text.
#pragma once
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "ops/tensors.h"
#include "ops/torch.h"

namespace fastnn::ops {

// Bits of Op::dtypes.
constexpr unsigned kFloat = 1, kDouble = 2, kBFloat16 = 4, kHalf = 8;
constexpr unsigned kFloatDouble = kFloat | kDouble;
constexpr unsigned kFloating = kFloat | kDouble | kBFloat16 | kHalf;
// Beside them: an op made of products of matrices. On CUDA it has kernels of all dtypes, and runs them where
// cuda_products() says so.
constexpr unsigned kProduct = 16;

// An operation, as `python -m fastnn info` lists it. Define one per front op at namespace scope.
struct Op {
  // private_op: the op with the kernels, without its namespace. autocast: torch's autocast changes this
  // op's dtype, so under autocast torch's own op runs.
  Op(const char* name, const char* private_op, unsigned dtypes, bool autocast = false);
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  bool has_cuda_kernel() const;  // the CUDA library is loaded and registered a kernel
  bool is_product() const { return (dtypes & kProduct) != 0; }
  unsigned cuda_dtypes() const { return is_product() ? kFloating : dtypes; }

  const char* const name;
  const char* const private_op;
  const unsigned dtypes;
  const bool autocast;

 private:
  mutable std::atomic<bool> cuda_kernel_found_{false};
};
const std::vector<const Op*>& all_ops();

// Why `op` can't run natively on these tensors now, or nullptr when it can. Undefined tensors are
// ignored; all others must share dtype and device.
const char* why_not(const Op& op, c10::ArrayRef<const Tensor*> tensors);
template <class... Tensors>
const char* why_not(const Op& op, const Tensors&... tensors) {
  const Tensor* list[] = {&tensors...};
  return why_not(op, c10::ArrayRef<const Tensor*>(list, sizeof...(tensors)));
}

// Beyond why_not(): what rules out that an op writes its result over x. An answer leaves the call to torch's
// op, for its error text too.
const char* why_not_overwrite(const Tensor& x);

// What fastnn.explain() shows: one entry per front call.
struct Record {
  std::string op;
  std::string algorithm;  // of the native kernel, "" when there is just one
  std::string reason;     // why torch's op ran, "" when native
};
void start_recording();
std::vector<Record> take_records();  // those since the last take
void stop_recording();
void record_algorithm(const char* algorithm);  // of the native call under way

void set_strict(bool);
bool strict();
void set_enabled(bool);  // off: every call runs torch's op
bool enabled();
// Whether products of matrices run on fastnn's CUDA kernels. Off until a GPU has shown that they are as fast
// as cuBLAS and cuDNN; FASTNN_CUDA_PRODUCTS=1 turns them on from the start.
void set_cuda_products(bool);
bool cuda_products();

// True where the dispatcher would find the CPU kernel and nothing else: a plain tensor on the CPU, no mode,
// no profiler watching. Its caller may then call that kernel, which saves a small ReLU 0.1 us in each
// direction.
bool runs_directly(const Tensor& t);

// A plain dense tensor of any dtype: class indices, for instance, which why_not() is not asked about.
bool is_plain(const Tensor& t);

void note_native(const Op& op);
// In strict mode throws: torch's op has run, but the caller asked for fastnn's kernels.
void note_fallback(const Op& op, const char* reason);

// Runs native(), the private op's autograd kernel, or torch(). Called as a function and not as an op:
// why_not() has found nothing that the dispatcher would do in between.
template <class Native, class Torch>
auto front(const Op& op, const char* reason, const Native& native, const Torch& torch) {
  if (reason == nullptr) {
    note_native(op);
    return native();
  }
  auto result = torch();  // first: its error text, if any, is torch's own
  note_fallback(op, reason);
  return result;
}

// The typed handle of an op of ours, looked up once per call site: static auto op = handle<...>(...).
template <class Signature>
c10::TypedOperatorHandle<Signature> handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

// --- Python bindings ---------------------------------------------------------------------------------

// FASTNN_BIND(stem, m) { m.def(...); } in csrc/ops/<stem>.cpp adds to the module _C.
struct Binder {
  using Bind = void (*)(pybind11::module_&);
  explicit Binder(Bind);
};
const std::vector<Binder::Bind>& binders();
#define FASTNN_BIND(stem, m)                                     \
  static void bind_##stem(pybind11::module_& m);                 \
  static const ::fastnn::ops::Binder binder_##stem(bind_##stem); \
  static void bind_##stem(pybind11::module_& m)

}  // namespace fastnn::ops
