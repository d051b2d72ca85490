// libfastnn_emulated.so: loading it, after fastnn, puts the emulated CUDA kernels in the place of the CPU's.
//
// The other files are csrc/cuda and csrc/ops/cuda; here is what the tests ask of the emulator. FASTNN_ORDER
// names the order of threads.
#include <ATen/record_function.h>
#include <torch/library.h>

#include <cstdlib>

#include "cuda_emulator/machine.h"

namespace fastnn::emulator {
namespace {

// Where nobody watches, small ops call their CPU kernel without the dispatcher (runs_directly() in
// csrc/ops/front.h), which would pass the emulated one by. So somebody watches.
[[maybe_unused]] const at::CallbackHandle watcher = at::addGlobalCallback(
    at::RecordFunctionCallback([](const at::RecordFunction&) -> std::unique_ptr<at::ObserverContext> {
      return nullptr;
    }).scopes({at::RecordScope::FUNCTION}));

[[maybe_unused]] const bool ordered = [] {
  const char* order = std::getenv("FASTNN_ORDER");
  if (order != nullptr) set_order(parse_order(order));
  return order != nullptr;
}();

TORCH_LIBRARY(fastnn_emulated, m) {
  m.def("launches() -> int", [] { return launches(); });
}

}  // namespace
}  // namespace fastnn::emulator
