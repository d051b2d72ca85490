// Backward through time: each step a product of the slopes of the step after with packed W_hh and the cell's
// slopes on its sums; then the gradient of x as one product over all steps, those of the weights in chains of
// rows.
#include <algorithm>

#include "cpu/rnn/layer.h"
#include "fastnn/linear.h"

namespace fastnn::cpu {
namespace {

// Columns of a transpose at a time: a cache line's worth of rows is written before the line leaves L1.
constexpr int64_t kTransposed = 16;
constexpr int64_t kChain = 96;  // rows in one chain of a sum of the weights' gradients

template <class T>
class Backward {
 public:
  explicit Backward(const RnnBackwardParams& p)
      : p_(p),
        s_(p.shape),
        layer_(p.shape),
        slopes_width_(layer_.blocks.slopes * s_.H),
        hh_size_(layer_.packed_size(layer_.blocks.gates * s_.H, s_.P, 1)),
        hr_size_(s_.projects ? layer_.packed_size(s_.P, s_.H, 1) : 0),
        hh_(s_.D * hh_size_),
        hr_(s_.D * hr_size_),
        slopes_(s_.D * s_.rows * slopes_width_),
        state_(s_.cell == RnnCell::kLstm || s_.cell == RnnCell::kGru ? s_.D * s_.N * s_.H : 0),
        projected_(s_.projects ? s_.D * s_.rows * s_.P : 0),
        hidden_(s_.projects ? s_.D * s_.rows * s_.H : 0) {}

  void operator()() const {
    for (int64_t d = 0; d < s_.D; ++d) {
      const RnnWeights& w = p_.weights[d];
      layer_.pack(w.w_hh, s_.P, 1, layer_.blocks.gates * s_.H, s_.P, 1, hh_.data() + d * hh_size_);
      if (s_.projects) layer_.pack(w.w_hr, s_.H, 1, s_.P, s_.H, 1, hr_.data() + d * hr_size_);
    }
    const int64_t states = s_.D * s_.N * s_.H;
    if (s_.cell == RnnCell::kLstm) {
      p_.dcy ? std::copy_n(static_cast<const T*>(p_.dcy), states, state_.data())
             : std::fill_n(state_.data(), states, T(0));
    }
    run_team(layer_.work(), [this](const RnnWorker& w) {
      for (int64_t d = w.first_direction; d < w.last_direction; ++d)
        for (int64_t i = s_.T - 1; i >= 0; --i) step(w, d, i);
    });
    if (p_.dc0) std::copy_n(state_.data(), states, static_cast<T*>(p_.dc0));
    for (int64_t d = 0; d < s_.D; ++d) parameters(d);
  }

 private:
  // --- matrices of a direction, at a step's first row ---

  const T* y(int64_t d, int64_t t) const {
    return static_cast<const T*>(p_.y) + s_.first[t] * y_width() + d * s_.P;
  }
  const T* dy(int64_t d, int64_t t) const {
    return p_.dy ? static_cast<const T*>(p_.dy) + s_.first[t] * y_width() + d * s_.P : nullptr;
  }
  int64_t y_width() const { return s_.D * s_.P; }
  int64_t kept_width() const { return layer_.blocks.kept == 0 ? y_width() : layer_.blocks.kept * s_.H; }
  const T* kept(int64_t d, int64_t t) const {
    if (layer_.blocks.kept == 0) return y(d, t);
    return static_cast<const T*>(p_.kept) + (d * s_.rows + s_.first[t]) * kept_width();
  }
  T* slopes(int64_t d, int64_t t) const {
    return slopes_.data() + (d * s_.rows + s_.first[t]) * slopes_width_;
  }
  T* state(int64_t d) const { return state_.data() + d * s_.N * s_.H; }
  T* projected(int64_t d, int64_t t) const { return projected_.data() + (d * s_.rows + s_.first[t]) * s_.P; }
  T* hidden(int64_t d, int64_t t) const { return hidden_.data() + (d * s_.rows + s_.first[t]) * s_.H; }
  const T* of_direction(const void* data, int64_t d, int64_t width) const {
    return data ? static_cast<const T*>(data) + d * s_.N * width : nullptr;
  }

  // --- the steps ---

  // Slopes times W_hh: the gradient of h of the step before. GRU's W_hn has the slopes beyond n's.
  RnnProduct<T> through_hh(const RnnWorker& w, int64_t d, int64_t t, int64_t from) const {
    const RnnRows<const T> a = own_rows<const T>(w, slopes(d, t), slopes_width_, from);
    const int64_t k = layer_.blocks.gates * s_.H, gap = s_.cell == RnnCell::kGru ? s_.H : 0;
    return {a.data, a.row, gap > 0 ? 2 * s_.H : k, gap, k, hh_.data() + d * hh_size_};
  }

  void step(const RnnWorker& w, int64_t d, int64_t i) const {
    const int64_t t = layer_.step(d, i), own = w.count(s_.active[t]);
    const int64_t from_before = w.count(layer_.carried(d, i));
    const int64_t to_after = i + 1 < s_.T ? w.count(layer_.carried(d, i + 1)) : 0;
    if (s_.projects) {
      for (int64_t begin = 0, end; begin < own; begin = end) {
        end = begin < to_after ? to_after : own;
        RnnMultiply<T> m;
        m.part = layer_.part(w, end - begin, s_.P);
        incoming(w, d, i, begin, begin < to_after, m);
        m.y = own_rows(w, projected(d, t), s_.P, begin);
        layer_.ops.multiply(m);
      }
      w.meet();
    }
    for (int64_t begin = 0, end; begin < own; begin = end) {
      const bool begins = begin >= from_before, ends = begin >= to_after;
      end = std::min(begins ? own : from_before, ends ? own : to_after);
      cell(w, d, i, begin, end, begins, ends);
    }
    w.meet();
    if (own > from_before && p_.dh0) {
      RnnMultiply<T> m;
      m.part = layer_.part(w, own - from_before, s_.P);
      m.product = through_hh(w, d, t, from_before);
      if (s_.cell == RnnCell::kGru) m.add = own_rows<const T>(w, state(d), s_.H, from_before);
      m.y = own_rows(w, static_cast<T*>(p_.dh0) + d * s_.N * s_.P, s_.P, from_before);
      layer_.ops.multiply(m);
    }
  }

  // The gradient of the output of a step: dy, and what comes from the step after or from hy.
  template <class Call>
  void incoming(const RnnWorker& w, int64_t d, int64_t i, int64_t begin, bool goes_on, Call& call) const {
    const int64_t t = layer_.step(d, i);
    call.add = own_rows(w, dy(d, t), y_width(), begin);
    if (!goes_on) {
      call.more = own_rows(w, of_direction(p_.dhy, d, s_.P), s_.P, begin);
      return;
    }
    call.product = through_hh(w, d, layer_.step(d, i + 1), begin);
    if (s_.cell == RnnCell::kGru) call.more = own_rows<const T>(w, state(d), s_.H, begin);
  }

  // A worker's own sequences [begin, end); they begin at this step, or end there.
  void cell(const RnnWorker& w, int64_t d, int64_t i, int64_t begin, int64_t end, bool begins,
            bool ends) const {
    const int64_t t = layer_.step(d, i);
    RnnBackward<T> b;
    b.part = layer_.part(w, end - begin, s_.H);
    if (s_.projects) {
      const RnnRows<const T> a = own_rows<const T>(w, projected(d, t), s_.P, begin);
      b.product = {a.data, a.row, s_.P, 0, s_.P, hr_.data() + d * hr_size_};
      b.hidden = own_rows(w, hidden(d, t), s_.H, begin);
    } else {
      incoming(w, d, i, begin, !ends, b);
    }
    b.kept = own_rows(w, kept(d, t), kept_width(), begin);
    if (begins) {
      b.h = own_rows(w, of_direction(p_.h0, d, s_.P), s_.P, begin);
      b.c = own_rows(w, of_direction(p_.c0, d, s_.H), s_.H, begin);
    } else {
      const int64_t before = layer_.step(d, i - 1);
      b.h = own_rows(w, y(d, before), y_width(), begin);
      if (s_.cell == RnnCell::kLstm) b.c = own_rows(w, kept(d, before) + 4 * s_.H, kept_width(), begin);
    }
    b.dc = b.dh = own_rows(w, state(d), s_.H, begin);
    b.slopes = own_rows(w, slopes(d, t), slopes_width_, begin);
    layer_.ops.backward[static_cast<int>(s_.cell)](b);
  }

  // --- gradients over all steps ---

  // dw [K, C] = slopes^T x, as the transpose of x^T slopes: x has fewer columns, and what is stored by
  // columns has to be packed. In chains of kChain rows: torch sums step by step.
  void weight_gradient(const T* slopes, int64_t width, int64_t K, const T* x, int64_t C, void* dw) const {
    const Scratch<T> transposed(C * K);
    for (int64_t row = 0; row < s_.rows; row += kChain) {
      gemm(GemmParams<T>{.m = C,
                         .n = K,
                         .k = std::min(kChain, s_.rows - row),
                         .a = x + row * C,
                         .a_row = 1,
                         .a_col = C,
                         .b = slopes + row * width,
                         .b_row = width,
                         .b_col = 1,
                         .c = transposed.data(),
                         .c_row = K,
                         .accumulate = row > 0});
    }
    T* out = static_cast<T*>(dw);
    parallel_for(
        (K + kTransposed - 1) / kTransposed, 1 + kGrain / (C * kTransposed),
        [&](int64_t first, int64_t last) {
          for (int64_t k = first * kTransposed; k < std::min(K, last * kTransposed); k += kTransposed)
            layer_.ops.transpose(transposed.data() + k, K, std::min(kTransposed, K - k), C, out + k * C);
        });
  }

  // h of the step before, for each row.
  void gather_before(int64_t d, T* before) const {
    const T* h0 = of_direction(p_.h0, d, s_.P);
    parallel_for(s_.T, 1 + kGrain / (s_.N * s_.P), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t t = layer_.step(d, i), carried = layer_.carried(d, i);
        for (int64_t n = 0; n < s_.active[t]; ++n) {
          T* row = before + (s_.first[t] + n) * s_.P;
          if (n < carried) {
            std::copy_n(y(d, layer_.step(d, i - 1)) + n * y_width(), s_.P, row);
          } else if (h0) {
            std::copy_n(h0 + n * s_.P, s_.P, row);
          } else {
            std::fill_n(row, s_.P, T(0));
          }
        }
      }
    });
  }

  void parameters(int64_t d) const {
    const RnnWeightGradients& g = p_.gradients[d];
    const int64_t H = s_.H, columns = layer_.blocks.gates * H,
                  shared = s_.cell == RnnCell::kGru ? 2 * H : columns;
    // Past the columns that both weights share: GRU's n as W_hn sees it.
    const int64_t beyond = columns - shared, beyond_at = 3 * H;
    if (p_.dx) {
      gemm(GemmParams<T>{.m = s_.rows,
                         .n = s_.C,
                         .k = columns,
                         .a = slopes(d, 0),
                         .a_row = slopes_width_,
                         .a_col = 1,
                         .b = static_cast<const T*>(p_.weights[d].w_ih),
                         .b_row = s_.C,
                         .b_col = 1,
                         .c = static_cast<T*>(p_.dx),
                         .c_row = s_.C,
                         .accumulate = d > 0});
    }
    const T* all = slopes(d, 0);
    if (g.w_ih) weight_gradient(all, slopes_width_, columns, static_cast<const T*>(p_.x), s_.C, g.w_ih);
    if (g.w_hh) {
      const Scratch<T> before(s_.rows * s_.P);
      gather_before(d, before.data());
      T* dw = static_cast<T*>(g.w_hh);
      weight_gradient(all, slopes_width_, shared, before.data(), s_.P, dw);
      if (beyond > 0) {
        weight_gradient(all + beyond_at, slopes_width_, beyond, before.data(), s_.P, dw + shared * s_.P);
      }
    }
    if (g.w_hr) weight_gradient(projected(d, 0), s_.P, s_.P, hidden(d, 0), H, g.w_hr);
    if (g.b_ih || g.b_hh) {
      const Scratch<T> sums(slopes_width_);
      linear_backward({.dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32,
                       .shape = {.N = s_.rows, .C = 0, .K = slopes_width_},
                       .dy = {all, slopes_width_, 1},
                       .x = {},
                       .w = {},
                       .db = sums.data()});
      if (g.b_ih) std::copy_n(sums.data(), columns, static_cast<T*>(g.b_ih));
      if (g.b_hh) {
        T* db = static_cast<T*>(g.b_hh);
        std::copy_n(sums.data(), shared, db);
        if (beyond > 0) std::copy_n(sums.data() + beyond_at, beyond, db + shared);
      }
    }
  }

  const RnnBackwardParams& p_;
  const RnnShape& s_;
  const RnnLayer<T> layer_;
  const int64_t slopes_width_, hh_size_, hr_size_;
  const Scratch<T> hh_, hr_;    // packed weights
  const Scratch<T> slopes_;     // [D, rows, slopes H]
  const Scratch<T> state_;      // [D, N, H] gradient of c, or what reaches h past GRU's gates
  const Scratch<T> projected_;  // [D, rows, P] gradient of the projected output
  const Scratch<T> hidden_;     // [D, rows, H] in front of the projection
};

}  // namespace

void rnn_backward(const RnnBackwardParams& p) {
  p.dtype == DType::kFloat64 ? Backward<double>(p)() : Backward<float>(p)();
}

}  // namespace fastnn::cpu
