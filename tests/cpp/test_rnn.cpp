// Recurrent layers against their definition in double, one sequence at a time: cells, directions,
// projections, packed sequences, absent states and gradients; the same bits for any number of threads.
#include <cmath>
#include <deque>
#include <numeric>
#include <vector>

#include "fastnn/rnn.h"
#include "harness.h"

using namespace fastnn;
using namespace fastnn::testing;

namespace {

using Numbers = std::vector<double>;

struct Setting {
  RnnCell cell;
  int64_t D, C, H, P;  // P < H: a projection
  std::vector<int64_t> active;
  bool biases = true, states = true, output_only = false;
};

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// Weights of one direction and their gradients; empty where there are none.
enum Weight { kIh, kHh, kBih, kBhh, kHr, kWeights };

std::vector<int64_t> weight_sizes(const Setting& s) {
  const int64_t rows = rnn_blocks(s.cell).gates * s.H, bias = s.biases ? rows : 0;
  return {rows * s.C, rows * s.P, bias, bias, s.P < s.H ? s.P * s.H : 0};
}

// All matrices of a call, as T in guarded memory or as double.
template <class Array>
struct Tensors {
  Array x, h0, c0, dy, dhy, dcy;
  Array y, hy, cy, dx, dh0, dc0;
  std::deque<Array> w, dw;  // [direction * kWeights + Weight]
};

template <class T>
struct Run {
  const Setting& s;
  int64_t N, rows;
  std::vector<int64_t> first;
  Tensors<Buffer<T>> b;
  Buffer<T> kept;

  Run(const Setting& setting, Place place)
      : s(setting),
        N(s.active[0]),
        rows(std::accumulate(s.active.begin(), s.active.end(), int64_t{0})),
        b{Buffer<T>(rows * s.C, place),
          Buffer<T>(s.D * N * s.P, place),
          Buffer<T>(s.D * N * s.H, place),
          Buffer<T>(rows * s.D * s.P, place),
          Buffer<T>(s.D * N * s.P, place),
          Buffer<T>(s.D * N * s.H, place),
          Buffer<T>(rows * s.D * s.P, place),
          Buffer<T>(s.D * N * s.P, place),
          Buffer<T>(s.D * N * s.H, place),
          Buffer<T>(rows * s.C, place),
          Buffer<T>(s.D * N * s.P, place),
          Buffer<T>(s.D * N * s.H, place),
          {},
          {}},
        kept(s.D * rows * rnn_blocks(s.cell).kept * s.H, place) {
    uint64_t seed = 0;
    for (const auto* filled : {&b.x, &b.h0, &b.c0, &b.dy, &b.dhy, &b.dcy}) filled->fill_random(++seed);
    int64_t row = 0;
    for (int64_t n : s.active) {
      first.push_back(row);
      row += n;
    }
    const auto sizes = weight_sizes(s);
    for (int64_t i = 0; i < s.D * kWeights; ++i) {
      const double scale = 1.5 / std::sqrt(static_cast<double>(s.H));
      b.w.emplace_back(sizes[i % kWeights], place).fill_random(10 + i, -scale, scale);
      b.dw.emplace_back(sizes[i % kWeights], place);
    }
  }

  RnnShape shape() const {
    return {.cell = s.cell,
            .D = s.D,
            .T = static_cast<int64_t>(s.active.size()),
            .N = N,
            .C = s.C,
            .H = s.H,
            .P = s.P,
            .projects = s.P < s.H,
            .rows = rows,
            .active = s.active.data(),
            .first = first.data()};
  }
  static T* data(const Buffer<T>& buffer) { return buffer.size() > 0 ? buffer.data() : nullptr; }
  void fill(RnnWeights& w, int64_t d) const {
    const auto at = [&](Weight kind) { return data(b.w[d * kWeights + kind]); };
    w = {at(kIh), at(kHh), at(kBih), at(kBhh), at(kHr)};
  }

  void forward(bool keep) const {
    const bool lstm = s.cell == RnnCell::kLstm;
    RnnParams p{.dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32,
                .shape = shape(),
                .x = b.x.data(),
                .h0 = s.states ? b.h0.data() : nullptr,
                .c0 = s.states && lstm ? b.c0.data() : nullptr,
                .y = b.y.data(),
                .hy = b.hy.data(),
                .cy = lstm ? b.cy.data() : nullptr,
                .kept = keep ? data(kept) : nullptr};
    for (int64_t d = 0; d < s.D; ++d) fill(p.weights[d], d);
    cpu::rnn_forward(p);
  }
  void backward() const {
    const bool lstm = s.cell == RnnCell::kLstm;
    RnnBackwardParams p{.dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32,
                        .shape = shape(),
                        .x = b.x.data(),
                        .h0 = s.states ? b.h0.data() : nullptr,
                        .c0 = s.states && lstm ? b.c0.data() : nullptr,
                        .y = b.y.data(),
                        .kept = data(kept),
                        .dy = b.dy.data(),
                        .dhy = s.output_only ? nullptr : b.dhy.data(),
                        .dcy = s.output_only || !lstm ? nullptr : b.dcy.data(),
                        .dx = b.dx.data(),
                        .dh0 = b.dh0.data(),
                        .dc0 = lstm ? b.dc0.data() : nullptr};
    for (int64_t d = 0; d < s.D; ++d) {
      fill(p.weights[d], d);
      const auto at = [&](Weight kind) { return data(b.dw[d * kWeights + kind]); };
      p.gradients[d] = {at(kIh), at(kHh), at(kBih), at(kBhh), at(kHr)};
    }
    cpu::rnn_backward(p);
  }
};

// out[i] += sum of w[i, j] v[j], or with the transpose.
void add_product(const double* w, int64_t rows, int64_t columns, const double* v, double* out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[i] += w[i * columns + j] * v[j];
}
void add_transposed(const double* w, int64_t rows, int64_t columns, const double* v, double* out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[j] += w[i * columns + j] * v[i];
}
void add_outer(const double* a, int64_t rows, const double* v, int64_t columns, double* out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[i * columns + j] += a[i] * v[j];
}

// One step of one sequence: W_ih x + b_ih, W_hh h + b_hh, the states before and after.
struct Step {
  int64_t row;
  Numbers from_x, from_h, h0, c0, hidden, c;

  double sum(int64_t i) const { return from_x[i] + from_h[i]; }
};

class Definition {
 public:
  template <class T>
  explicit Definition(const Run<T>& run) : s_(run.s), N_(run.N), rows_(run.rows), first_(run.first) {
    t.x = run.b.x.doubles(), t.h0 = run.b.h0.doubles(), t.c0 = run.b.c0.doubles();
    t.dy = run.b.dy.doubles(), t.dhy = run.b.dhy.doubles(), t.dcy = run.b.dcy.doubles();
    if (!s_.states) t.h0.assign(t.h0.size(), 0), t.c0.assign(t.c0.size(), 0);
    if (s_.output_only) t.dhy.assign(t.dhy.size(), 0), t.dcy.assign(t.dcy.size(), 0);
    t.y.resize(t.dy.size()), t.hy.resize(t.h0.size()), t.cy.resize(t.c0.size());
    t.dx.resize(t.x.size()), t.dh0.resize(t.h0.size()), t.dc0.resize(t.c0.size());
    for (const auto& w : run.b.w) {
      t.w.push_back(w.doubles());
      t.dw.emplace_back(w.size());
    }
    for (int64_t d = 0; d < s_.D; ++d)
      for (int64_t n = 0; n < N_; ++n) sequence(d, n);
  }

  Tensors<Numbers> t;

 private:
  const double* w(int64_t d, Weight kind) const { return t.w[d * kWeights + kind].data(); }
  double* dw(int64_t d, Weight kind) { return t.dw[d * kWeights + kind].data(); }

  void sequence(int64_t d, int64_t n) {
    const int64_t H = s_.H, P = s_.P, G = rnn_blocks(s_.cell).gates * H, T = s_.active.size();
    Numbers h(&t.h0[(d * N_ + n) * P], &t.h0[(d * N_ + n) * P] + P);
    Numbers c(&t.c0[(d * N_ + n) * H], &t.c0[(d * N_ + n) * H] + H);
    std::vector<Step> steps;
    for (int64_t i = 0; i < T; ++i) {
      const int64_t time = d == 0 ? i : T - 1 - i;
      if (s_.active[time] <= n) continue;
      Step step{first_[time] + n, Numbers(G), Numbers(G), h, c, Numbers(H), Numbers(H)};
      add_product(w(d, kIh), G, s_.C, &t.x[step.row * s_.C], step.from_x.data());
      add_product(w(d, kHh), G, P, h.data(), step.from_h.data());
      for (int64_t j = 0; j < G && s_.biases; ++j) {
        step.from_x[j] += w(d, kBih)[j];
        step.from_h[j] += w(d, kBhh)[j];
      }
      for (int64_t j = 0; j < H; ++j) cell(step, j);
      c = step.c;
      h = step.hidden;
      if (P < H) {
        h.assign(P, 0);
        add_product(w(d, kHr), P, H, step.hidden.data(), h.data());
      }
      for (int64_t j = 0; j < P; ++j) t.y[(step.row * s_.D + d) * P + j] = h[j];
      steps.push_back(step);
    }
    std::copy(h.begin(), h.end(), &t.hy[(d * N_ + n) * P]);
    std::copy(c.begin(), c.end(), &t.cy[(d * N_ + n) * H]);
    gradients(d, n, steps);
  }

  void cell(Step& s, int64_t j) const {
    const int64_t H = s_.H;
    switch (s_.cell) {
      case RnnCell::kTanh: s.hidden[j] = std::tanh(s.sum(j)); break;
      case RnnCell::kRelu: s.hidden[j] = std::max(0.0, s.sum(j)); break;
      case RnnCell::kLstm:
        s.c[j] = sigmoid(s.sum(H + j)) * s.c0[j] + sigmoid(s.sum(j)) * std::tanh(s.sum(2 * H + j));
        s.hidden[j] = sigmoid(s.sum(3 * H + j)) * std::tanh(s.c[j]);
        break;
      case RnnCell::kGru: {
        const double r = sigmoid(s.sum(j)), z = sigmoid(s.sum(H + j));
        const double n = std::tanh(s.from_x[2 * H + j] + r * s.from_h[2 * H + j]);
        s.hidden[j] = (1 - z) * n + z * s.h0[j];
      }
    }
  }

  void gradients(int64_t d, int64_t n, const std::vector<Step>& steps) {
    const int64_t H = s_.H, P = s_.P, G = rnn_blocks(s_.cell).gates * H;
    Numbers dh(&t.dhy[(d * N_ + n) * P], &t.dhy[(d * N_ + n) * P] + P);
    Numbers dc(&t.dcy[(d * N_ + n) * H], &t.dcy[(d * N_ + n) * H] + H);
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      for (int64_t j = 0; j < P; ++j) dh[j] += t.dy[(step->row * s_.D + d) * P + j];
      Numbers dhidden = dh;
      if (P < H) {
        dhidden.assign(H, 0);
        add_transposed(w(d, kHr), P, H, dh.data(), dhidden.data());
        add_outer(dh.data(), P, step->hidden.data(), H, dw(d, kHr));
      }
      Numbers to_x(G), to_h(G), past(P);
      for (int64_t j = 0; j < H; ++j) slopes(*step, j, dhidden[j], dc, to_x, to_h, past);
      dh = past;
      add_transposed(w(d, kHh), G, P, to_h.data(), dh.data());
      add_transposed(w(d, kIh), G, s_.C, to_x.data(), &t.dx[step->row * s_.C]);
      add_outer(to_x.data(), G, &t.x[step->row * s_.C], s_.C, dw(d, kIh));
      add_outer(to_h.data(), G, step->h0.data(), P, dw(d, kHh));
      for (int64_t j = 0; j < G && s_.biases; ++j) {
        dw(d, kBih)[j] += to_x[j];
        dw(d, kBhh)[j] += to_h[j];
      }
    }
    std::copy(dh.begin(), dh.end(), &t.dh0[(d * N_ + n) * P]);
    std::copy(dc.begin(), dc.end(), &t.dc0[(d * N_ + n) * H]);
  }

  // Gradients in front of the gates of unit j; `past`: what reaches h of the step before past them.
  void slopes(const Step& s, int64_t j, double dh, Numbers& dc, Numbers& to_x, Numbers& to_h,
              Numbers& past) const {
    const int64_t H = s_.H;
    const auto both = [&](int64_t gate, double slope) { to_x[gate * H + j] = to_h[gate * H + j] = slope; };
    switch (s_.cell) {
      case RnnCell::kTanh: both(0, dh * (1 - s.hidden[j] * s.hidden[j])); break;
      case RnnCell::kRelu: both(0, s.hidden[j] > 0 ? dh : 0); break;
      case RnnCell::kLstm: {
        const double i = sigmoid(s.sum(j)), f = sigmoid(s.sum(H + j)), g = std::tanh(s.sum(2 * H + j)),
                     o = sigmoid(s.sum(3 * H + j)), tanh_c = std::tanh(s.c[j]);
        dc[j] += dh * o * (1 - tanh_c * tanh_c);
        both(0, dc[j] * g * i * (1 - i));
        both(1, dc[j] * s.c0[j] * f * (1 - f));
        both(2, dc[j] * i * (1 - g * g));
        both(3, dh * tanh_c * o * (1 - o));
        dc[j] *= f;
        break;
      }
      case RnnCell::kGru: {
        const double r = sigmoid(s.sum(j)), z = sigmoid(s.sum(H + j)), hn = s.from_h[2 * H + j];
        const double n = std::tanh(s.from_x[2 * H + j] + r * hn), dn = dh * (1 - z) * (1 - n * n);
        both(0, dn * hn * r * (1 - r));
        both(1, dh * (s.h0[j] - n) * z * (1 - z));
        to_x[2 * H + j] = dn;
        to_h[2 * H + j] = dn * r;
        past[j] = dh * z;
      }
    }
  }

  const Setting& s_;
  const int64_t N_, rows_;
  const std::vector<int64_t> first_;
};

template <class T>
void check(const Setting& s, Place place, double tolerance) {
  const Run<T> run(s, place);
  const Definition exact(run);
  for (bool keep : {false, true}) {
    run.forward(keep);
    CHECK_CLOSE(run.b.y, exact.t.y, tolerance, tolerance);
    CHECK_CLOSE(run.b.hy, exact.t.hy, tolerance, tolerance);
    if (s.cell == RnnCell::kLstm) CHECK_CLOSE(run.b.cy, exact.t.cy, tolerance, tolerance);
  }
  run.backward();
  const double wider = 20 * tolerance;
  CHECK_CLOSE(run.b.dx, exact.t.dx, wider, wider);
  CHECK_CLOSE(run.b.dh0, exact.t.dh0, wider, wider);
  if (s.cell == RnnCell::kLstm) CHECK_CLOSE(run.b.dc0, exact.t.dc0, wider, wider);
  for (size_t i = 0; i < run.b.dw.size(); ++i) CHECK_CLOSE(run.b.dw[i], exact.t.dw[i], wider, wider);
}

constexpr RnnCell kCells[] = {RnnCell::kTanh, RnnCell::kRelu, RnnCell::kLstm, RnnCell::kGru};

TEST(rnn_matches_its_definition) {
  const std::vector<int64_t> batches[] = {{1}, {3, 3, 3}, {5, 5, 2, 1}, {9, 8, 8, 1}};
  for (Place place : kPlaces)
    for (RnnCell cell : kCells)
      for (const auto& active : batches)
        for (int64_t D : {1, 2})
          for (int64_t H : {1, 7, 33}) {
            Case c("cell " + std::to_string(static_cast<int>(cell)) + ", H = " + std::to_string(H) +
                   ", D = " + std::to_string(D) + ", N = " + std::to_string(active[0]));
            const bool odd = H == 7;
            check<float>({cell, D, 5, H, H, active, !odd, D == 1, odd}, place, 5e-6);
            check<double>({cell, D, 3, H, H, active, odd, D == 2, !odd}, place, 1e-13);
          }
}

TEST(rnn_projects) {
  for (Place place : kPlaces)
    for (int64_t D : {1, 2})
      for (int64_t P : {1, 6, 19}) {
        check<float>({RnnCell::kLstm, D, 4, 21, P, {6, 6, 3}}, place, 5e-6);
        check<double>({RnnCell::kLstm, D, 4, 21, P, {2, 2, 1, 1}, false, false}, place, 1e-13);
      }
}

// More rows than a chunk of steps has; LSTM without a backward hands its cells on.
TEST(rnn_runs_in_chunks) {
  std::vector<int64_t> active(150, 12);
  for (int64_t t = 70; t < 150; ++t) active[t] = 9;
  for (RnnCell cell : kCells) check<double>({cell, 2, 3, 5, 5, active}, Place::kEnd, 1e-12);
}

template <class T>
bool same_bits(const Run<T>& a, const Run<T>& b) {
  bool same = a.b.y.same_bits(b.b.y) && a.b.hy.same_bits(b.b.hy) && a.b.dx.same_bits(b.b.dx) &&
              a.b.dh0.same_bits(b.b.dh0);
  if (a.s.cell == RnnCell::kLstm) same = same && a.b.cy.same_bits(b.b.cy) && a.b.dc0.same_bits(b.b.dc0);
  for (size_t i = 0; i < a.b.dw.size(); ++i) same = same && a.b.dw[i].same_bits(b.b.dw[i]);
  return same;
}

// Shares of the sequences, of the units (few sequences), of the directions; a projection meets twice a step.
TEST(rnn_is_the_same_for_any_thread_count) {
  const std::vector<int64_t> many(20, 45), few(8, 2);
  std::vector<int64_t> shrinking = many;
  for (int64_t t = 5; t < 20; ++t) shrinking[t] = 40 - 2 * t;
  for (RnnCell cell : kCells)
    for (const Setting& s : {Setting{cell, 1, 20, 64, 64, many}, Setting{cell, 2, 20, 50, 50, shrinking},
                             Setting{cell, 1, 20, 300, 300, few},
                             Setting{cell, 1, 20, 300, cell == RnnCell::kLstm ? 200 : 300, few}}) {
      const Run<float> alone(s, Place::kEnd), again(s, Place::kEnd);
      set_threads(1);
      alone.forward(true);
      alone.backward();
      each_thread_count([&] {
        again.forward(true);
        again.backward();
        CHECK(same_bits(again, alone));
      });
    }
}

}  // namespace
