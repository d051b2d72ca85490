// What the front and private ops of max and average pooling share: the windows, sizes and layouts.
#pragma once
#include "fastnn/pooling.h"
#include "ops/front.h"
#include "ops/node.h"

namespace fastnn::ops {

// The windows of a call as one list of integers, so that an op's schema and the autograd node carry them
// whole: rank, mode, then kernel, stride, padding and dilation for D, H and W. Adaptive: the output size
// instead of the kernel. Missing leading dimensions are 1 (padding 0).
struct Windows {
  enum Mode : int64_t { kFloor, kCeil, kAdaptive };
  static constexpr int64_t kLength = 14;
  int64_t rank = 0, mode = kFloor;
  int64_t kernel[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, padding[3] = {0, 0, 0}, dilation[3] = {1, 1, 1};

  static Windows from(at::IntArrayRef list);
  at::IntArrayRef list() const { return {&rank, kLength}; }
  bool adaptive() const { return mode == kAdaptive; }

  // Number of windows along D, H or W over `in` elements.
  template <class Int>
  Int count(int dim, const Int& in) const {
    if (adaptive()) return kernel[dim];
    const Int span = in + 2 * padding[dim] - (kernel[dim] - 1) * dilation[dim] - 1;
    if (mode == kFloor) return span / stride[dim] + 1;
    // The last window must start inside the input or the padding before it.
    const Int count = (span + stride[dim] - 1) / stride[dim] + 1;
    return (count - 1) * stride[dim] >= in + padding[dim] ? count - 1 : count;
  }

  // x: [N, C, ...] or [C, ...], rank numbers behind the channels.
  template <class Int>
  std::vector<Int> output_size(c10::ArrayRef<Int> x) const {
    std::vector<Int> out(x.begin(), x.end());
    for (int64_t i = 0; i < rank; ++i) {
      Int& size = out[out.size() - rank + i];
      size = count(static_cast<int>(3 - rank + i), size);
    }
    return out;
  }
};
static_assert(sizeof(Windows) == Windows::kLength * sizeof(int64_t), "list() reads the struct as one array");

// Reads a call's windows, lists of one or `rank` numbers as torch takes them. A reason when they are not for
// our kernels: then torch's op answers, or says what is wrong.
const char* read_fixed(const Tensor& x, int64_t rank, at::IntArrayRef kernel, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode, Windows& w);
const char* read_adaptive(const Tensor& x, int64_t rank, at::IntArrayRef output_size, Windows& w);

PoolShape pool_shape(at::IntArrayRef input_size, const Windows& w, bool channels_last);

// Whether torch gives a channels_last result for x. Averages and adaptive windows in 3-D never are.
bool keeps_channels_last(const Tensor& x, const Windows& w, bool is_max);

// A tensor in the layout of pooling: contiguous or channels_last, where a length L is treated as 1 x L.
Tensor empty_pooled(c10::SymIntArrayRef size, const at::TensorOptions& options, const Windows& w,
                    bool channels_last);
Tensor in_layout(const Tensor& t, const Windows& w, bool channels_last);

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
