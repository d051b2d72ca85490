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

// y, hy and, of kLstm, cy again, step by step from torch's differentiable ops: for second derivatives.
std::vector<Tensor> rnn_replay(const Tensor& x, const Tensor& hx, const Tensor& cx, at::TensorList weights,
                               at::IntArrayRef active, int64_t cell, bool bidirectional);

// Tensors of one direction in torch's flat list: w_ih, w_hh, and b_ih, b_hh, w_hr where there are any.
inline int64_t rnn_weight_count(bool biases, bool projects) {
  return 2 + (biases ? 2 : 0) + (projects ? 1 : 0);
}

// The sizes of a layer. Int: SymInt on Meta.
template <class Int>
struct RnnSizes {
  RnnCell cell;
  int64_t D;
  bool biases, projects;
  Int N, C, H, P, rows;
  std::vector<Int> y;  // sizes of the output

  bool lstm() const { return cell == RnnCell::kLstm; }
  RnnBlocks blocks() const { return rnn_blocks(cell); }
  std::vector<Int> state() const { return {Int(D), N, P}; }
  std::vector<Int> cells() const {
    return lstm() ? std::vector<Int>{Int(D), N, H} : std::vector<Int>{Int(0)};
  }
  std::vector<Int> kept(bool keep) const {
    if (!keep || blocks().kept == 0) return {Int(0)};
    return {Int(D), rows, H * blocks().kept};
  }
};

template <class Int>
c10::ArrayRef<Int> sizes_of(const Tensor& t) {
  if constexpr (std::is_same_v<Int, c10::SymInt>) {
    return t.sym_sizes();
  } else {
    return t.sizes();
  }
}

template <class Int>
RnnSizes<Int> rnn_sizes(const Tensor& x, at::TensorList weights, at::IntArrayRef active, int64_t cell,
                        bool bidirectional) {
  TORCH_CHECK(cell >= 0 && cell <= static_cast<int64_t>(RnnCell::kGru),
              "fastnn::_rnn_layer: no cell has number ", cell);
  RnnSizes<Int> s;
  s.cell = static_cast<RnnCell>(cell);
  s.D = bidirectional ? 2 : 1;
  const int64_t count = static_cast<int64_t>(weights.size()) / s.D;
  TORCH_CHECK(static_cast<int64_t>(weights.size()) == count * s.D && count >= 2 && count <= 5,
              "fastnn::_rnn_layer: ", weights.size(), " weights");
  s.biases = count >= 4;
  s.projects = count % 2 == 1;
  TORCH_CHECK(s.lstm() || !s.projects, "fastnn::_rnn_layer: a projection without an LSTM");
  TORCH_CHECK(x.dim() == (active.empty() ? 3 : 2), "fastnn::_rnn_layer: an input of ", x.dim(),
              " dimensions");
  const auto xs = sizes_of<Int>(x), hh = sizes_of<Int>(weights[1]);
  TORCH_CHECK(hh.size() == 2, "fastnn::_rnn_layer: a weight of ", hh.size(), " dimensions");
  s.N = active.empty() ? xs[1] : Int(active[0]);
  s.C = xs.back();
  s.rows = active.empty() ? xs[0] * xs[1] : xs[0];
  s.H = hh[0] / s.blocks().gates;
  s.P = hh[1];
  s.y.assign(xs.begin(), xs.end());
  s.y.back() = s.P * s.D;
  return s;
}

}  // namespace fastnn::ops
