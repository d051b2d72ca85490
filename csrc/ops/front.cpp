#include "ops/front.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdlib>
#include <mutex>
#include <string_view>

namespace fastnn::ops {
namespace {

std::vector<const Op*>& op_list() {
  static std::vector<const Op*> list;
  return list;
}

std::vector<Binder::Bind>& binder_list() {
  static std::vector<Binder::Bind> list;
  return list;
}

std::atomic<bool> enabled_{true}, strict_{false}, recording{false};
std::atomic<bool> cuda_products_ = [] {
  const char* text = std::getenv("FASTNN_CUDA_PRODUCTS");
  return text != nullptr && std::string_view(text) == "1";
}();
std::mutex records_mutex;
std::vector<Record> records;

using c10::DispatchKey;
using c10::DispatchKeySet;

// What a plain CPU or CUDA tensor may carry. A subclass, a functorch wrapper, a nested, sparse,
// conjugated or meta tensor carries another key.
constexpr DispatchKeySet kPlainTensor({DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::AutogradCPU,
                                       DispatchKey::AutogradCUDA, DispatchKey::ADInplaceOrView,
                                       DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA});
constexpr DispatchKeySet kAutocast({DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA});
// What the thread may have switched on. Modes (dispatch modes, functorch, tracing) add keys.
constexpr DispatchKeySet kPlainThread({DispatchKey::BackendSelect, DispatchKey::ADInplaceOrView,
                                       DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA});

unsigned dtype_bit(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return kFloat;
    case at::kDouble: return kDouble;
    case at::kBFloat16: return kBFloat16;
    case at::kHalf: return kHalf;
    default: return 0;
  }
}

// Every tensor carries its device's autocast key; a thread without autocast excludes it.
bool autocast_on(const Tensor& t, DispatchKeySet excluded) {
  return !((t.key_set() & kAutocast) - excluded).empty();
}

}  // namespace

Op::Op(const char* name, const char* private_op, unsigned dtypes, bool autocast)
    : name(name), private_op(private_op), dtypes(dtypes), autocast(autocast) {
  op_list().push_back(this);
}

bool Op::has_cuda_kernel() const {
  // Only a yes is final: the library may load after the first question, it never unloads.
  if (cuda_kernel_found_.load(std::memory_order_relaxed)) return true;
  const auto schema = c10::Dispatcher::singleton().findSchema({std::string("fastnn::") + private_op, ""});
  const bool found = schema && schema->hasKernelForDispatchKey(DispatchKey::CUDA);
  if (found) cuda_kernel_found_.store(true, std::memory_order_relaxed);
  return found;
}

const std::vector<const Op*>& all_ops() {
  return op_list();
}

Binder::Binder(Bind bind) {
  binder_list().push_back(bind);
}
const std::vector<Binder::Bind>& binders() {
  return binder_list();
}

const char* why_not(const Op& op, c10::ArrayRef<const Tensor*> tensors) {
  if (!enabled_.load(std::memory_order_relaxed)) return "fastnn is disabled";
  const auto thread = c10::impl::tls_local_dispatch_key_set();
  if ((thread.included_ | kPlainThread) != kPlainThread) return "a transform, a mode or tracing is active";
  const Tensor* first = nullptr;
  for (const Tensor* t : tensors) {
    if (!t->defined()) continue;
    if ((t->key_set() | kPlainTensor) != kPlainTensor) {
      return t->is_meta() ? "a meta tensor" : "a tensor that is not plain and dense";
    }
    if (op.autocast && autocast_on(*t, thread.excluded_)) return "autocast chooses the dtype";
    if (has_tangent(*t)) return "forward-mode differentiation";
    if (first == nullptr) {
      first = t;
      const unsigned dtypes = t->is_cpu() ? op.dtypes : op.cuda_dtypes();
      if ((dtype_bit(t->scalar_type()) & dtypes) == 0) return "no kernel for this dtype";
      if (!t->is_cpu() && !op.has_cuda_kernel()) return "no CUDA kernel in this build";
      if (!t->is_cpu() && op.is_product() && !cuda_products()) return "fastnn.backends.cuda.products is off";
    } else if (t->scalar_type() != first->scalar_type()) {
      return "mixed dtypes";
    } else if (t->device() != first->device()) {
      return "mixed devices";
    }
  }
  return first == nullptr ? "no tensor" : nullptr;
}

const char* why_not_overwrite(const Tensor& x) {
  if (!x.is_cpu()) return "in place: on the CPU only";
  if (!x.is_non_overlapping_and_dense()) return "in place: the tensor has gaps or overlaps";
  if (!at::GradMode::is_enabled()) return nullptr;
  return (x.requires_grad() && x.is_leaf()) || x.is_view() ? "in place: on a leaf or a view" : nullptr;
}

bool is_plain(const Tensor& t) {
  return (t.key_set() | kPlainTensor) == kPlainTensor;
}

bool runs_directly(const Tensor& t) {
  return t.is_cpu() && is_plain(t) &&
         (c10::impl::tls_local_dispatch_key_set().included_ | kPlainThread) == kPlainThread &&
         !at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION).has_value();
}

void set_cuda_products(bool on) {
  cuda_products_ = on;
}
bool cuda_products() {
  return cuda_products_;
}

void start_recording() {
  const std::lock_guard lock(records_mutex);
  records.clear();
  recording = true;
}

std::vector<Record> take_records() {
  const std::lock_guard lock(records_mutex);
  return std::exchange(records, {});
}

void stop_recording() {
  recording = false;
}

void record_algorithm(const char* algorithm) {
  if (!recording.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(records_mutex);
  if (!records.empty() && records.back().algorithm.empty()) records.back().algorithm = algorithm;
}

void set_strict(bool on) {
  strict_ = on;
}
bool strict() {
  return strict_;
}
void set_enabled(bool on) {
  enabled_ = on;
}
bool enabled() {
  return enabled_;
}

void note_native(const Op& op) {
  if (!recording.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(records_mutex);
  records.push_back({op.name, "", ""});
}

void note_fallback(const Op& op, const char* reason) {
  if (recording.load(std::memory_order_relaxed)) {
    const std::lock_guard lock(records_mutex);
    records.push_back({op.name, "", reason});
  }
  TORCH_CHECK(!strict_.load(std::memory_order_relaxed), "fastnn.strict: ", op.name,
              " ran torch's own op: ", reason);
}

}  // namespace fastnn::ops
