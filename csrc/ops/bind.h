// Front ops as Python functions by CPython's vector call: arguments by position, read straight from an array.
//
// pybind11's dispatcher builds two vectors and tries overloads: 0.11 us of the 1.2 us that ReLU on 64 x 100
// takes. Functions with lists of ints stay with it.
//
//   bind_front<linear>(m, "linear", {"input", "weight", "bias"});
#pragma once
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "ops/torch.h"

namespace fastnn::ops {

// Work on so few elements is over sooner than another thread could use the interpreter's lock; giving it away
// and taking it back costs 0.1 us.
inline bool is_small(const at::Tensor& t) {
  constexpr int64_t kSmall = 16384;
  if (!t.defined()) return true;
  const c10::TensorImpl& impl = *t.unsafeGetTensorImpl();
  const bool plain_size = !impl.has_symbolic_sizes_strides() && !impl.key_set().has(c10::DispatchKey::Python);
  return t.is_cpu() && plain_size && t.numel() <= kSmall;
}
inline bool is_small(const std::optional<at::Tensor>& t) {
  return !t || is_small(*t);
}
inline bool is_small(double) {  // any other argument
  return true;
}
inline bool is_small(const std::optional<double>&) {
  return true;
}

// An argument and what an error says about it.
struct Argument {
  PyObject* object;
  const char* function;
  const char* name;

  void must_be(const char* type) const {
    PyErr_Clear();
    TORCH_CHECK_TYPE(false, function, "(): argument '", name, "' must be ", type, ", not ",
                     Py_TYPE(object)->tp_name);
  }
};

template <class T>
T from_python(const Argument& a) {
  if constexpr (std::is_same_v<T, at::Tensor>) {
    if (!THPVariable_Check(a.object)) a.must_be("Tensor");
    return THPVariable_Unpack(a.object);
  } else if constexpr (std::is_same_v<T, std::optional<at::Tensor>>) {
    if (a.object == Py_None) return std::nullopt;
    if (!THPVariable_Check(a.object)) a.must_be("Tensor or None");
    return THPVariable_Unpack(a.object);
  } else if constexpr (std::is_same_v<T, std::optional<double>>) {
    if (a.object == Py_None) return std::nullopt;
    return from_python<double>(a);
  } else if constexpr (std::is_same_v<T, double>) {
    const double value = PyFloat_AsDouble(a.object);
    if (value == -1 && PyErr_Occurred()) a.must_be("float");
    return value;
  } else if constexpr (std::is_same_v<T, bool>) {
    const int value = PyObject_IsTrue(a.object);
    if (value < 0) a.must_be("bool");
    return value != 0;
  } else {
    static_assert(std::is_same_v<T, int64_t>, "no conversion from Python to this type");
    const pybind11::object index = pybind11::reinterpret_steal<pybind11::object>(PyNumber_Index(a.object));
    const int64_t value = index ? PyLong_AsLongLong(index.ptr()) : -1;
    if (value == -1 && PyErr_Occurred()) a.must_be("int");
    return value;
  }
}

template <auto function, class Signature = decltype(function)>
struct Binding;

template <auto function, class... Parameters>
struct Binding<function, at::Tensor (*)(Parameters...)> {
  static constexpr size_t kCount = sizeof...(Parameters);
  static inline std::string name;
  static inline std::array<const char*, kCount> names;
  static inline PyMethodDef definition;

  static PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    HANDLE_TH_ERRORS
    TORCH_CHECK_TYPE(count == static_cast<Py_ssize_t>(kCount), name, "() takes ", kCount, " arguments, not ",
                     count);
    return run(arguments, std::make_index_sequence<kCount>());
    END_HANDLE_TH_ERRORS
  }

 private:
  template <size_t... i>
  static PyObject* run(PyObject* const* arguments, std::index_sequence<i...>) {
    // Braces: the first wrong argument is the one that the error names.
    std::tuple<std::decay_t<Parameters>...> values{
        from_python<std::decay_t<Parameters>>({arguments[i], name.c_str(), names[i]})...};
    at::Tensor y;
    {
      std::optional<pybind11::gil_scoped_release> no_gil;
      if (!(is_small(std::get<i>(values)) && ...)) no_gil.emplace();
      y = function(std::get<i>(values)...);
    }
    return THPVariable_Wrap(std::move(y));
  }
};

// Adds `function`, Tensor(...) by position, to the module. One name for each function; parameters: at least
// as many names as it has, activations give three.
template <auto function>
void bind_front(pybind11::module_& m, const std::string& name,
                std::initializer_list<const char*> parameters) {
  using Bound = Binding<function>;
  TORCH_INTERNAL_ASSERT(parameters.size() >= Bound::kCount);
  Bound::name = name;
  std::copy_n(parameters.begin(), Bound::kCount, Bound::names.begin());
  Bound::definition = {Bound::name.c_str(),
                       reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(Bound::call)), METH_FASTCALL,
                       nullptr};
  m.attr(Bound::name.c_str()) = pybind11::reinterpret_steal<pybind11::object>(
      PyCFunction_NewEx(&Bound::definition, nullptr, m.attr("__name__").ptr()));
}

}  // namespace fastnn::ops
