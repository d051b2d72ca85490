// Softmax, log-softmax and softmin against their definition in double, over innermost and strided dimensions.
#include <cmath>
#include <limits>
#include <tuple>

#include "fastnn/softmax.h"
#include "harness.h"

using namespace fastnn;
using namespace fastnn::testing;

namespace {

template <class T>
constexpr double kTolerance = 2e-6;
template <>
constexpr double kTolerance<double> = 1e-13;
template <>
constexpr double kTolerance<BFloat16> = 0x1p-7;
template <>
constexpr double kTolerance<Float16> = 0x1p-10;

// y, and dx from the y that the kernel wrote.
template <class T>
void check(int64_t outer, int64_t length, int64_t inner, bool log, bool negate, Place place) {
  const int64_t n = outer * length * inner;
  Buffer<T> x(n, place), y(n, place), dy(n, place), dx(n, place);
  x.fill_random(1, -8, 8), dy.fill_random(2, -1, 1);
  cpu::softmax_forward({.dtype = kDType<T>,
                        .outer = outer,
                        .length = length,
                        .inner = inner,
                        .log = log,
                        .negate = negate,
                        .x = x.data(),
                        .y = y.data()});
  cpu::softmax_backward({.dtype = kDType<T>,
                         .outer = outer,
                         .length = length,
                         .inner = inner,
                         .log = log,
                         .negate = negate,
                         .dy = dy.data(),
                         .y = y.data(),
                         .dx = dx.data()});
  std::vector<double> want_y(n), want_dx(n);
  const double sign = negate ? -1 : 1;
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t j = 0; j < inner; ++j) {
      const auto at = [&](int64_t l) { return (o * length + l) * inner + j; };
      double peak = -std::numeric_limits<double>::infinity(), sum = 0, dot = 0;
      for (int64_t l = 0; l < length; ++l) peak = std::max(peak, sign * to_double(x[at(l)]));
      for (int64_t l = 0; l < length; ++l) sum += std::exp(sign * to_double(x[at(l)]) - peak);
      for (int64_t l = 0; l < length; ++l) {
        const double v = sign * to_double(x[at(l)]) - peak;
        want_y[at(l)] = log ? v - std::log(sum) : std::exp(v) / sum;
        dot += to_double(dy[at(l)]) * (log ? 1 : to_double(y[at(l)]));
      }
      for (int64_t l = 0; l < length; ++l) {
        const double g = to_double(dy[at(l)]), v = to_double(y[at(l)]);
        want_dx[at(l)] = sign * (log ? g - std::exp(v) * dot : v * (g - dot));
      }
    }
  }
  // Half a unit of the subnormal float16, or of the largest logarithm.
  CHECK_CLOSE(y, want_y, kTolerance<T>, log ? kTolerance<T> : kDType<T> == DType::kFloat16 ? 0x1p-25 : 1e-30);
  CHECK_CLOSE(dx, want_dx, kTolerance<T>, kTolerance<T>);
}

}  // namespace

TEST(softmax_forward_and_backward) {
  for (Place place : kPlaces) {
    for (const auto& [outer, length, inner] : {std::tuple{1, 1, 1},
                                               {3, 10, 1},
                                               {2, 64, 1},
                                               {1, 1003, 1},
                                               {2, 2048, 1},
                                               {1, 9001, 1},
                                               {1, 20000, 1},
                                               {2, 3, 5},
                                               {2, 7, 70},
                                               {1, 5, 131},
                                               {2, 4, 64},
                                               {0, 3, 1},
                                               {2, 3, 0},
                                               {2, 0, 3}}) {
      Case which(std::to_string(outer) + "x" + std::to_string(length) + "x" + std::to_string(inner));
      for (bool log : {false, true}) {
        for (bool negate : {false, true}) {
          check<float>(outer, length, inner, log, negate, place);
          check<double>(outer, length, inner, log, negate, place);
          check<BFloat16>(outer, length, inner, log, negate, place);
          check<Float16>(outer, length, inner, log, negate, place);
        }
      }
    }
  }
}

TEST(softmax_of_infinities_and_nan) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  // Rows: minus infinity among numbers; all minus infinity; infinity among numbers; NaN first; NaN last.
  const std::vector<double> x = {-inf, 0, 0, -inf, -inf, -inf, inf, 0, 0, nan, 0, 0, 0, 0, nan};
  const std::vector<double> want = {0, 0.5, 0.5, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan};
  Buffer<float> rows(x), y(rows.size());
  cpu::softmax_forward({.outer = 5, .length = 3, .x = rows.data(), .y = y.data()});
  for (int i : {0, 1, 2}) CHECK(to_double(y[i]) == want[i]);
  for (int64_t i = 3; i < y.size(); ++i) CHECK(std::isnan(want[i]) == std::isnan(to_double(y[i])));
  // The same as columns.
  std::vector<double> transposed(15);
  for (int r = 0; r < 5; ++r)
    for (int c = 0; c < 3; ++c) transposed[c * 5 + r] = x[r * 3 + c];
  Buffer<float> columns(transposed), z(columns.size());
  cpu::softmax_forward({.length = 3, .inner = 5, .x = columns.data(), .y = z.data()});
  for (int r = 0; r < 5; ++r)
    for (int c = 0; c < 3; ++c) {
      const float a = z[c * 5 + r], b = y[r * 3 + c];
      CHECK(a == b || (std::isnan(a) && std::isnan(b)));
    }
}

TEST(softmax_does_not_depend_on_threads) {
  for (const auto& [outer, length, inner] : {std::tuple{4000, 17, 1}, {3, 40, 900}}) {
    const int64_t n = int64_t{outer} * length * inner;
    Buffer<float> x(n), first(n);
    x.fill_random(3, -4, 4);
    SoftmaxParams p{.outer = outer, .length = length, .inner = inner, .x = x.data(), .y = first.data()};
    set_threads(1);
    cpu::softmax_forward(p);
    each_thread_count([&] {
      Buffer<float> y(n);
      p.y = y.data();
      cpu::softmax_forward(p);
      CHECK(y.same_bits(first));
    });
  }
}
