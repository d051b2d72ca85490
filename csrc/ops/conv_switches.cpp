// fastnn.backends.conv: the switches between algorithms of convolutions, and what was measured.
#include "cpu/conv/algorithms.h"
#include "cpu/conv/benchmark.h"
#include "ops/front.h"

namespace fastnn::ops {
namespace {

// As fastnn.backends.conv.measured() gives it.
pybind11::dict measurement(const cpu::ConvMeasurement& m) {
  namespace py = pybind11;
  const ConvGeometry& p = m.geometry;
  const auto sizes = [](const int64_t (&v)[3]) { return py::make_tuple(v[0], v[1], v[2]); };
  py::dict seconds;
  for (size_t i = 0; i < m.names.size(); ++i)
    seconds[m.names[i]] = m.seconds.empty() ? py::object(py::none()) : py::object(py::float_(m.seconds[i]));
  constexpr const char* kDirections[] = {"forward", "backward data", "backward weight"};
  py::dict d;
  d["direction"] = kDirections[static_cast<int>(m.direction)];
  d["dtype"] = p.dtype == DType::kFloat64 ? "float64" : "float32";
  d["channels_last"] = p.channels_last;
  d["n"] = p.n, d["c"] = p.c, d["k"] = p.k, d["groups"] = p.g;
  d["in"] = sizes(p.in), d["kernel"] = sizes(p.kernel), d["out"] = sizes(p.out);
  d["stride"] = sizes(p.stride), d["padding"] = sizes(p.padding), d["dilation"] = sizes(p.dilation);
  d["threads"] = m.threads;
  d["capability"] = m.capability;
  d["seconds"] = seconds;
  d["default"] = m.names.front();
  d["fastest"] = m.names[m.fastest];
  return d;
}

FASTNN_BIND(conv_switches, m) {
  namespace py = pybind11;
  m.def("conv_winograd", &cpu::winograd_enabled);
  m.def("set_conv_winograd", &cpu::set_winograd_enabled, py::arg("on"));
  m.def("conv_benchmark", &cpu::conv_benchmark_enabled);
  m.def("set_conv_benchmark", &cpu::set_conv_benchmark_enabled, py::arg("on"));
  m.def("conv_measurements", [] {
    py::list all;
    for (const cpu::ConvMeasurement& m : cpu::conv_measurements()) all.append(measurement(m));
    return all;
  });
  m.def("forget_conv_measurements", &cpu::forget_conv_measurements);
}

}  // namespace
}  // namespace fastnn::ops
