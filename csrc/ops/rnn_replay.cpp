// A recurrent layer from torch's own ops.
#include "ops/rnn.h"

namespace fastnn::ops {
namespace {

// The layer again, step by step from torch's differentiable ops.
class Replay {
 public:
  Replay(const Tensor& x, const Tensor& hx, const Tensor& cx, at::TensorList weights, at::IntArrayRef active,
         int64_t cell, bool bidirectional)
      : s_(rnn_sizes<int64_t>(x, weights, active, cell, bidirectional)),
        weights_(weights),
        active_(active.vec()) {
    if (active_.empty()) active_.assign(x.size(0), s_.N);
    std::vector<Tensor> y, hy, cy;
    for (int64_t d = 0; d < s_.D; ++d) {
      const auto state = [&](const Tensor& t, int64_t width) {
        return t.defined() ? t.reshape({s_.D, s_.N, width}).select(0, d)
                           : at::zeros({s_.N, width}, x.options());
      };
      direction(d, x.reshape({s_.rows, s_.C}).split_with_sizes(active_), state(hx, s_.P),
                s_.lstm() ? state(cx, s_.H) : Tensor());
      y.push_back(at::cat(y_));
      hy.push_back(hy_);
      cy.push_back(cy_);
    }
    outputs = {at::cat(y, -1).reshape(s_.y), at::stack(hy)};
    if (s_.lstm()) outputs.push_back(at::stack(cy));
  }

  std::vector<Tensor> outputs;  // y, hy, cy

 private:
  void direction(int64_t d, const std::vector<Tensor>& x, const Tensor& h0, const Tensor& c0) {
    const int64_t T = static_cast<int64_t>(active_.size()),
                  count = static_cast<int64_t>(weights_.size()) / s_.D;
    const at::TensorList w = weights_.slice(d * count, count);
    y_.assign(T, Tensor());
    // The sequences of a step: those that go on from the step before, then those that begin.
    const auto join = [](const Tensor& before, const Tensor& initial, int64_t carried, int64_t n) {
      return at::cat({before.narrow(0, 0, carried), initial.narrow(0, carried, n - carried)});
    };
    Tensor h = h0, c = c0;
    std::vector<Tensor> last_h, last_c;
    for (int64_t i = 0; i < T; ++i) {
      const int64_t t = d == 0 ? i : T - 1 - i, n = active_[t];
      const int64_t carried = i == 0 ? 0 : std::min(n, active_[d == 0 ? t - 1 : t + 1]);
      const int64_t going_on = d == 1 ? (t > 0 ? n : 0) : (t + 1 < T ? active_[t + 1] : 0);
      h = join(h, h0, carried, n);
      if (c.defined()) c = join(c, c0, carried, n);
      step(x[t], w, h, c);
      y_[t] = h;
      last_h.insert(last_h.begin(), h.narrow(0, going_on, n - going_on));
      if (c.defined()) last_c.insert(last_c.begin(), c.narrow(0, going_on, n - going_on));
    }
    hy_ = at::cat(last_h);
    if (c.defined()) cy_ = at::cat(last_c);
  }

  void step(const Tensor& x, at::TensorList w, Tensor& h, Tensor& c) const {
    const auto bias = [&](int i) { return s_.biases ? OptionalTensor(w[i]) : std::nullopt; };
    const Tensor from_x = at::linear(x, w[0], bias(2)), from_h = at::linear(h, w[1], bias(3));
    if (s_.cell == RnnCell::kGru) {
      const auto a = from_x.chunk(3, 1), b = from_h.chunk(3, 1);
      const Tensor r = (a[0] + b[0]).sigmoid(), z = (a[1] + b[1]).sigmoid(), n = (a[2] + r * b[2]).tanh();
      h = n + z * (h - n);
      return;
    }
    const Tensor sums = from_x + from_h;
    if (!s_.lstm()) {
      h = s_.cell == RnnCell::kTanh ? sums.tanh() : sums.relu();
      return;
    }
    const auto gates = sums.chunk(4, 1);
    c = gates[1].sigmoid() * c + gates[0].sigmoid() * gates[2].tanh();
    h = gates[3].sigmoid() * c.tanh();
    if (s_.projects) h = at::linear(h, w[w.size() - 1]);
  }

  RnnSizes<int64_t> s_;
  at::TensorList weights_;
  std::vector<int64_t> active_;
  std::vector<Tensor> y_;
  Tensor hy_, cy_;
};

}  // namespace

std::vector<Tensor> rnn_replay(const Tensor& x, const Tensor& hx, const Tensor& cx, at::TensorList weights,
                               at::IntArrayRef active, int64_t cell, bool bidirectional) {
  return Replay(x, hx, cx, weights, active, cell, bidirectional).outputs;
}

}  // namespace fastnn::ops
