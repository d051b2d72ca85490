// fastnn._C: what Python sees. Each stem adds its own functions through FASTNN_BIND.
#include "cpu/capability.h"
#include "ops/front.h"

namespace fastnn::ops {
namespace {

namespace py = pybind11;

constexpr cpu::Capability kCapabilities[] = {cpu::Capability::kPortable, cpu::Capability::kAvx2,
                                             cpu::Capability::kAvx512};

void set_cpu_capability(const std::string& wanted) {
  for (cpu::Capability c : kCapabilities) {
    if (wanted == cpu::name(c) && cpu::supported(c)) return cpu::set_capability(c);
  }
  throw py::value_error("cpu capability '" + wanted + "' is unknown, or this processor doesn't have it");
}

std::vector<std::string> supported_cpu_capabilities() {
  std::vector<std::string> names;
  for (cpu::Capability c : kCapabilities) {
    if (cpu::supported(c)) names.emplace_back(cpu::name(c));
  }
  return names;
}

std::vector<std::string> dtype_names(unsigned dtypes) {
  std::vector<std::string> names;
  if (dtypes & kFloat) names.emplace_back("float32");
  if (dtypes & kDouble) names.emplace_back("float64");
  if (dtypes & kBFloat16) names.emplace_back("bfloat16");
  if (dtypes & kHalf) names.emplace_back("float16");
  return names;
}

// One row per op: name, private op, dtypes with a CPU kernel, and with a CUDA kernel that is loaded and in
// use.
using OpRow = std::tuple<std::string, std::string, std::vector<std::string>, std::vector<std::string>>;
std::vector<OpRow> op_table() {
  std::vector<OpRow> rows;
  for (const Op* op : all_ops()) {
    const bool on_cuda = op->has_cuda_kernel() && (cuda_products() || !op->is_product());
    rows.emplace_back(op->name, op->private_op, dtype_names(op->dtypes),
                      dtype_names(on_cuda ? op->cuda_dtypes() : 0));
  }
  return rows;
}

std::vector<std::tuple<std::string, std::string, std::string>> take_record_tuples() {
  std::vector<std::tuple<std::string, std::string, std::string>> rows;
  for (Record& r : take_records())
    rows.emplace_back(std::move(r.op), std::move(r.algorithm), std::move(r.reason));
  return rows;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastnn's CPU kernels, op schemas and autograd";
  m.attr("torch_version") = FASTNN_TORCH_VERSION;
  m.attr("torch_cuda") = FASTNN_TORCH_CUDA;
  m.def("cpu_capability", [] { return std::string(cpu::name(cpu::capability())); });
  m.def("cpu_capability_reason", [] { return std::string(cpu::capability_reason()); });
  m.def("set_cpu_capability", &set_cpu_capability, py::arg("name"));
  m.def("supported_cpu_capabilities", &supported_cpu_capabilities);
  m.def("op_table", &op_table);
  m.def("start_recording", &start_recording);
  m.def("take_records", &take_record_tuples);
  m.def("stop_recording", &stop_recording);
  m.def("set_strict", &set_strict);
  m.def("strict", &strict);
  m.def("set_enabled", &set_enabled);
  m.def("enabled", &enabled);
  m.def("set_cuda_products", &set_cuda_products, pybind11::arg("on"));
  m.def("cuda_products", &cuda_products);
  for (const auto bind : binders()) bind(m);
}

}  // namespace fastnn::ops
