// Cases of linear and their check, for any type and any launcher: the CPU's, the CUDA kernels' on the
// emulator.
#pragma once
#include <array>
#include <functional>
#include <string>

#include "fastnn/linear.h"
#include "harness.h"

namespace fastnn::testing {

struct LinearLaunch {
  std::function<void(const LinearParams&)> forward;
  std::function<void(const LinearBackwardParams&)> backward;
};

// gap: numbers between neighbours in a row; padding: between rows.
struct LinearCase {
  int64_t N, C, K;
  int64_t gap = 1, padding = 0;
  bool bias = true;
  Place place = Place::kEnd;
};

// Many tiles of a kernel's largest size, and few with a long sum.
template <class F>
void each_linear_case_of_many_tiles(const F& f) {
  for (auto [N, C, K] :
       {std::array<int64_t, 3>{900, 20, 900}, {20, 900, 900}, {900, 900, 20}, {9, 2100, 3}, {2100, 3, 5}}) {
    f(LinearCase{.N = N, .C = C, .K = K});
  }
}
template <class F>
void each_linear_case(const F& f) {
  for (Place place : kPlaces) {
    for (auto [N, C, K] : {std::array<int64_t, 3>{1, 1, 1},
                           {1, 33, 5},
                           {3, 40, 70},
                           {8, 16, 17},
                           {9, 64, 64},
                           {65, 24, 16},
                           {70, 131, 66},
                           {4, 2100, 3},
                           {2, 8, 0},
                           {0, 5, 3},
                           {3, 0, 4}}) {
      f(LinearCase{.N = N, .C = C, .K = K, .place = place});
    }
    f(LinearCase{.N = 11, .C = 20, .K = 9, .gap = 2, .padding = 3, .place = place});
    f(LinearCase{.N = 5, .C = 16, .K = 24, .padding = 8, .bias = false, .place = place});
  }
}

template <class T>
class StridedMatrix {
 public:
  StridedMatrix(int64_t rows, int64_t cols, const LinearCase& c, uint64_t seed)
      : row_(cols * c.gap + c.padding),
        col_(c.gap),
        buffer_(rows * cols == 0 ? 0 : (rows - 1) * row_ + (cols - 1) * col_ + 1, c.place) {
    buffer_.fill_random(seed);
  }
  operator LinearMatrix() const { return {buffer_.data(), row_, col_}; }
  double operator()(int64_t i, int64_t j) const { return to_double(buffer_[i * row_ + j * col_]); }

 private:
  int64_t row_, col_;
  Buffer<T> buffer_;
};

// sum over n of a(n) b(n), and of |a(n) b(n)|.
template <class F>
std::pair<double, double> sum_of(int64_t count, const F& term) {
  double sum = 0, size = 0;
  for (int64_t n = 0; n < count; ++n) {
    const double t = term(n);
    sum += t, size += t < 0 ? -t : t;
  }
  return {sum, size};
}

// Compares with `term(row, col, n)` summed over n, plus add(col): within eps of the sum of sizes.
template <class T, class Term, class Add>
void check_product(const Buffer<T>& got, int64_t rows, int64_t cols, int64_t depth, const Term& term,
                   const Add& add, double eps) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      const auto [sum, size] = sum_of(depth, [&](int64_t n) { return term(i, j, n); });
      const double want = sum + add(j), is = to_double(got[i * cols + j]);
      const double allowed = eps * (size + (want < 0 ? -want : want));
      if (!(is - want <= allowed && want - is <= allowed)) {
        const Case where("row " + std::to_string(i) + " col " + std::to_string(j) + ": " +
                         std::to_string(is) + ", not " + std::to_string(want));
        CHECK(is == want);
        return;
      }
    }
  }
}

template <class T>
void check_linear(const LinearLaunch& launch, const LinearCase& c, double eps) {
  const int64_t N = c.N, C = c.C, K = c.K;
  const Case where("N " + std::to_string(N) + " C " + std::to_string(C) + " K " + std::to_string(K) +
                   " gap " + std::to_string(c.gap) + " padding " + std::to_string(c.padding) + " " +
                   name(c.place));
  const LinearCase dense = {.N = N, .C = C, .K = K, .place = c.place};
  const StridedMatrix<T> x(N, C, c, 1), w(K, C, c, 2), dy(N, K, dense, 3);
  const Buffer<T> bias(K, c.place), y(N * K, c.place), dx(N * C, c.place), dw(K * C, c.place), db(K, c.place);
  bias.fill_random(4);
  launch.forward({.dtype = kDType<T>,
                  .shape = {N, C, K},
                  .x = x,
                  .w = w,
                  .bias = c.bias ? bias.data() : nullptr,
                  .y = y.data()});
  launch.backward({.dtype = kDType<T>,
                   .shape = {N, C, K},
                   .dy = dy,
                   .x = x,
                   .w = w,
                   .dx = dx.data(),
                   .dw = dw.data(),
                   .db = db.data()});
  const auto nothing = [](int64_t) { return 0.0; };
  const auto b = [&](int64_t j) { return c.bias ? to_double(bias[j]) : 0.0; };
  check_product(y, N, K, C, [&](int64_t i, int64_t j, int64_t n) { return x(i, n) * w(j, n); }, b, eps);
  check_product(
      dx, N, C, K, [&](int64_t i, int64_t j, int64_t n) { return dy(i, n) * w(n, j); }, nothing, eps);
  check_product(
      dw, K, C, N, [&](int64_t i, int64_t j, int64_t n) { return dy(n, i) * x(n, j); }, nothing, eps);
  check_product(db, 1, K, N, [&](int64_t, int64_t j, int64_t n) { return dy(n, j); }, nothing, eps);
}

}  // namespace fastnn::testing
