// What the front ops of max and average pooling share: arguments as Python gives them, read into windows.
#pragma once
#include "ops/front.h"
#include "ops/node.h"
#include "ops/pooling_windows.h"

namespace fastnn::ops {

// Reads a call's windows, lists of one or `rank` numbers as torch takes them. A reason when they are not for
// our kernels: then torch's op answers, or says what is wrong.
const char* read_fixed(const Tensor& x, int64_t rank, at::IntArrayRef kernel, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, Windows& w);
const char* read_adaptive(const Tensor& x, int64_t rank, at::IntArrayRef output_size, Windows& w);

// A Python int, or a tuple or list of them.
struct IntList {
  c10::SmallVector<int64_t, 4> values;
  operator at::IntArrayRef() const { return values; }  // NOLINT: it stands for one
};

}  // namespace fastnn::ops

namespace pybind11::detail {
template <>
struct type_caster<fastnn::ops::IntList> {
  PYBIND11_TYPE_CASTER(fastnn::ops::IntList, const_name("int | tuple[int, ...]"));
  bool load(handle source, bool) {
    if (!PyTuple_Check(source.ptr()) && !PyList_Check(source.ptr())) return append(source.ptr());
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(source.ptr());
    for (Py_ssize_t i = 0; i < n; ++i)
      if (!append(PySequence_Fast_GET_ITEM(source.ptr(), i))) return false;
    return true;
  }

 private:
  bool append(PyObject* item) {
    if (!PyIndex_Check(item)) return false;
    const Py_ssize_t number = PyNumber_AsSsize_t(item, PyExc_OverflowError);
    if (number == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
    value.values.push_back(number);
    return true;
  }
};
}  // namespace pybind11::detail
