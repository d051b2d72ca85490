// A recurrent layer in one or both directions, as the front ops of rnn_stack.cpp and the cells call it.
#pragma once
#include <vector>

#include "fastnn/rnn.h"
#include "ops/vectors.h"

namespace fastnn::ops {

struct RnnState {
  Tensor y, hy, cy;  // cy: kLstm
};

// x: [T, N, C], or [rows, C] with `active` (see fastnn/rnn.h). hx, cx: [directions, N, ..] or undefined.
// weights: as in torch's flat list, those of one direction after those of the other. Records a gradient.
RnnState rnn_layer(const Tensor& x, const Tensor& hx, const Tensor& cx, at::TensorList weights,
                   at::IntArrayRef active, RnnCell cell, bool bidirectional);

// Tensors of one direction in torch's flat list: w_ih, w_hh, and b_ih, b_hh, w_hr where there are any.
inline int64_t rnn_weight_count(bool biases, bool projects) {
  return 2 + (biases ? 2 : 0) + (projects ? 1 : 0);
}

}  // namespace fastnn::ops
