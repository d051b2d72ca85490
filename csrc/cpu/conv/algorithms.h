// Where the algorithm of a convolution is chosen: one ordered list per direction. The first entry that is
// applicable and pays runs; the last one, a plain loop, always does. A new algorithm is one more line in
// csrc/cpu/conv.cpp. Those that are applicable are the candidates of csrc/cpu/conv/benchmark.h.
#pragma once
#include <cstddef>

#include "fastnn/conv.h"

namespace fastnn::cpu {

template <class Params>
struct ConvAlgorithm {
  const char* name;
  bool (*applicable)(const Params&);  // gives a right result
  bool (*pays)(const Params&);        // and is the fastest from here on, as far as shapes tell
  void (*run)(const Params&);
};

template <class Params>
struct ConvAlgorithms {
  const ConvAlgorithm<Params>* first;
  size_t count;
  const ConvAlgorithm<Params>* begin() const { return first; }
  const ConvAlgorithm<Params>* end() const { return first + count; }
};

// Of the layout in question: an algorithm reads one of them.
ConvAlgorithms<ConvForwardParams> conv_forward_algorithms(bool channels_last = false);
ConvAlgorithms<ConvBackwardDataParams> conv_backward_data_algorithms(bool channels_last = false);
ConvAlgorithms<ConvBackwardWeightParams> conv_backward_weight_algorithms(bool channels_last = false);

// csrc/cpu/conv/reference.cpp
void conv_reference(const ConvForwardParams&);
void conv_reference(const ConvBackwardDataParams&);
void conv_reference(const ConvBackwardWeightParams&);

// csrc/cpu/conv/shift.cpp
void conv_shift(const ConvForwardParams&);
void conv_shift(const ConvBackwardDataParams&);

// csrc/cpu/conv/winograd.cpp: float32, kernels of 3x3, stride and dilation 1
bool winograd_enabled();  // FASTNN_WINOGRAD=0 turns it off from the start
void set_winograd_enabled(bool);
bool winograd_applicable(const ConvGeometry&);  // enabled, and as exact as must be
bool winograd_applicable(const ConvBackwardDataParams&);
bool winograd_applicable(const ConvBackwardWeightParams&);
bool winograd_pays(const ConvGeometry&);
void conv_winograd(const ConvForwardParams&);
void conv_winograd(const ConvBackwardDataParams&);
// csrc/cpu/conv/winograd_weight.cpp
void conv_winograd(const ConvBackwardWeightParams&);

// csrc/cpu/conv/product.cpp: only where the kernel covers the whole input
void conv_product(const ConvForwardParams&);
void conv_product(const ConvBackwardDataParams&);
void conv_product(const ConvBackwardWeightParams&);

// csrc/cpu/conv/weight.cpp
void conv_outer(const ConvBackwardWeightParams&);
void conv_dot(const ConvBackwardWeightParams&);

// csrc/cpu/conv/last_dense.cpp, last_weight.cpp, last_depthwise.cpp, last_planes.cpp: channels last
void conv_last_dense(const ConvForwardParams&);
void conv_last_dense(const ConvBackwardDataParams&);
void conv_last_dense(const ConvBackwardWeightParams&);
void conv_last_depthwise(const ConvForwardParams&);
void conv_last_depthwise(const ConvBackwardDataParams&);
void conv_last_depthwise(const ConvBackwardWeightParams&);
void conv_last_planes(const ConvForwardParams&);
void conv_last_planes(const ConvBackwardDataParams&);
void conv_last_planes(const ConvBackwardWeightParams&);

}  // namespace fastnn::cpu
