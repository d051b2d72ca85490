// The vector math against the C library in double, and every activation against its formula in double.
#include <cmath>
#include <cstdio>
#include <limits>
#include <string_view>
#include <tuple>
#include <utility>

#include "fastnn/activation.h"
#include "fastnn/activation_table.h"
#include "harness.h"
#include "kernels/math_probe.h"

using namespace fastnn;
using namespace fastnn::testing;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Those made of several rounded numbers may lose a little more.
double allowed_ulps(std::string_view function) {
  return function == "tanhshrink"                                                      ? 3.5
         : function == "tanh"                                                          ? 4
         : function == "sigmoid" || function == "softplus" || function == "normal_cdf" ? 2.5
                                                                                       : 2;
}

// The exponent of the smallest unit that counts: normal_cdf adds up 1/2 and a part that may cancel it.
int smallest_unit(std::string_view function) {
  return function == "normal_cdf" ? -24 : -149;
}

double reference(int function, double x) {
  int index = 0;
  using fastnn::normal_cdf, fastnn::sigmoid, fastnn::softplus;
  const auto tanhshrink = [](double v) {  // the series where the difference has lost digits
    const double s = v * v;
    return std::abs(v) < 1e-2 ? v * s * (1.0 / 3 - s * (2.0 / 15 - s * 17 / 315)) : v - std::tanh(v);
  };
  using std::exp, std::expm1, std::log, std::tanh;
#define FASTNN_REFERENCE(name) \
  if (function == index++) return name(x);
  FASTNN_MATH_FUNCTIONS(FASTNN_REFERENCE)
#undef FASTNN_REFERENCE
  return 0;
}

const char* function_name(int function) {
  int index = 0;
#define FASTNN_NAME(name) \
  if (function == index++) return #name;
  FASTNN_MATH_FUNCTIONS(FASTNN_NAME)
#undef FASTNN_NAME
  return nullptr;
}

// The distance in units of the last place that a float has at `expected`.
double ulps(float actual, double expected, int smallest_unit) {
  if (std::isnan(expected) || std::isnan(actual))
    return std::isnan(expected) && std::isnan(actual) ? 0 : kInf;
  const float rounded = static_cast<float>(expected);
  if (std::isinf(rounded) || std::isinf(actual)) {
    // Where the rounded result overflows the largest float is one unit away, and the other way round.
    const double largest = std::numeric_limits<float>::max();
    if (actual == rounded) return 0;
    return std::abs(std::abs(static_cast<double>(std::isinf(actual) ? rounded : actual)) - largest) == 0
               ? 1
               : kInf;
  }
  const double unit =
      std::ldexp(1.0, std::max(std::ilogb(std::max(std::abs(expected), 1e-300)) - 23, smallest_unit));
  return std::abs(actual - expected) / unit;
}

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace

// Every 509th float of both signs: each exponent gets some 16,000 mantissas.
TEST(float_math_is_accurate) {
  constexpr int kBlock = 4096;
  float x[kBlock], y[kBlock];
  for (int f = 0; function_name(f); ++f) {
    double worst = 0;
    float where = 0;
    for (uint64_t bits = 0; bits < (uint64_t{1} << 32);) {
      int n = 0;
      for (; n < kBlock && bits < (uint64_t{1} << 32); bits += 509)
        x[n++] = from_bits(static_cast<uint32_t>(bits));
      cpu::math_probe_kernels().float32(f, n, x, y);
      for (int i = 0; i < n; ++i) {
        const double error = ulps(y[i], reference(f, x[i]), smallest_unit(function_name(f)));
        if (error > worst) worst = error, where = x[i];
      }
    }
    std::printf("  %-8s %-8s worst %.3f ulp at %.9g\n", cpu::name(cpu::capability()), function_name(f), worst,
                where);
    Case which(function_name(f));
    CHECK(worst <= allowed_ulps(function_name(f)));
  }
}

TEST(math_at_special_values) {
  const std::vector<double> special = {0.0,   -0.0,   kInf,  -kInf, std::nan(""), 1.0, -1.0,
                                       1e-45, -1e-45, 1e-38, 88.8,  -88.8,        104, -104,
                                       200,   -200,   3e38,  -3e38, 20,           -20};
  Buffer<float> x(special), y(x.size());
  Buffer<double> xd(special), yd(xd.size());
  for (int f = 0; function_name(f); ++f) {
    Case which(function_name(f));
    cpu::math_probe_kernels().float32(f, x.size(), x.data(), y.data());
    cpu::math_probe_kernels().float64(f, xd.size(), xd.data(), yd.data());
    for (int64_t i = 0; i < x.size(); ++i) {
      CHECK(ulps(y[i], reference(f, x[i]), smallest_unit(function_name(f))) <=
            allowed_ulps(function_name(f)));
      CHECK(std::isnan(xd[i]) || std::isnan(yd[i]) == std::isnan(reference(f, xd[i])));
      const double want = reference(f, xd[i]);
      CHECK(std::isnan(want) || yd[i] == want ||
            std::abs(yd[i] - want) <= 4e-16 * std::max(std::abs(want), 1e-30));
    }
  }
}

namespace {

struct Formula {
  double (*forward)(double x, double a, double b);
  double (*backward)(double dy, double s, double a, double b);
  double (*half_backward)(double dy, double s, double a, double b);
};
const Formula kFormulas[] = {
#define FASTNN_FORMULA(name, Struct)                                            \
  {activations::Struct::forward<double>, activations::Struct::backward<double>, \
   activations::derivative<activations::Struct, BFloat16, double>},
    FASTNN_ACTIVATIONS(FASTNN_FORMULA)
#undef FASTNN_FORMULA
};

// What one rounding to T costs, and what computing in float does.
template <class T>
constexpr double kTolerance = 1e-6;
template <>
constexpr double kTolerance<double> = 1e-14;
template <>
constexpr double kTolerance<BFloat16> = 0x1p-8;
template <>
constexpr double kTolerance<Float16> = 0x1p-11;

template <class T>
void check_activations() {
  const std::vector<double> special = {0,  -0.0, kInf, -kInf, std::nan(""), 1,   -1, 3,
                                       -3, 6,    0.5,  -0.5,  20,           -20, 88, -104};
  for (int kind = 0; kind < ActivationKind::kCount; ++kind) {
    const ActivationInfo& info = kActivationInfo[kind];
    Case which(std::string(info.name) + " " + std::to_string(static_cast<int>(kDType<T>)));
    for (Place place : kPlaces) {
      for (int64_t n : {0, 1, 5, 16, 33, 67}) {
        Buffer<T> x(n, place), y(n, place), dy(n, place), dx(n, place);
        x.fill_random(1, -6, 6), dy.fill_random(2, -2, 2);
        for (size_t i = 0; i < special.size() && i < static_cast<size_t>(n); ++i)
          x[i] = from_double<T>(special[i]);
        cpu::activation_forward({.kind = kind,
                                 .dtype = kDType<T>,
                                 .n = n,
                                 .x = x.data(),
                                 .y = y.data(),
                                 .a = info.a.value,
                                 .b = info.b.value});
        const Buffer<T>& saved = info.saves_y(kDType<T>) ? y : x;
        cpu::activation_backward({.kind = kind,
                                  .dtype = kDType<T>,
                                  .n = n,
                                  .dy = dy.data(),
                                  .saved = saved.data(),
                                  .dx = dx.data(),
                                  .a = info.a.value,
                                  .b = info.b.value});
        std::vector<double> want_y(n), want_dx(n);
        for (int64_t i = 0; i < n; ++i) {
          want_y[i] = kFormulas[kind].forward(to_double(x[i]), info.a.value, info.b.value);
          want_dx[i] = (sizeof(T) == 2 ? kFormulas[kind].half_backward : kFormulas[kind].backward)(
              to_double(dy[i]), to_double(saved[i]), info.a.value, info.b.value);
        }
        CHECK_CLOSE(y, want_y, 2 * kTolerance<T>, kTolerance<T>);
        CHECK_CLOSE(dx, want_dx, 2 * kTolerance<T>, kTolerance<T>);
        // The gradient of a sum: one number, with nothing behind it.
        const Buffer<T> one(1, place);
        Buffer<T> of_sum(n, place), repeated(n, place);
        one.fill(0.75), dy.fill(0.75);
        ActivationBackwardParams p = {.kind = kind,
                                      .dtype = kDType<T>,
                                      .n = n,
                                      .dy = dy.data(),
                                      .saved = saved.data(),
                                      .dx = repeated.data(),
                                      .a = info.a.value,
                                      .b = info.b.value};
        cpu::activation_backward(p);
        p.dy = one.data(), p.dy_broadcast = true, p.dx = of_sum.data();
        cpu::activation_backward(p);
        CHECK_CLOSE(of_sum, repeated.doubles(), 0, 0);
      }
    }
  }
}

}  // namespace

TEST(activations_match_their_formulas) {
  check_activations<float>();
  check_activations<double>();
  check_activations<BFloat16>();
  check_activations<Float16>();
}

TEST_ONCE(derivatives_match_difference_quotients) {
  for (int kind = 0; kind < ActivationKind::kCount; ++kind) {
    const ActivationInfo& info = kActivationInfo[kind];
    Case which(info.name);
    for (double x = -8.013; x < 8; x += 0.0517) {  // no kink is nearer than h
      const double h = 1e-5, a = info.a.value, b = info.b.value;
      const auto f = [&](double at) { return kFormulas[kind].forward(at, a, b); };
      const double slope = (f(x + h) - f(x - h)) / (2 * h);
      const double dx = kFormulas[kind].backward(1, info.reads_y ? f(x) : x, a, b);
      CHECK(std::abs(dx - slope) < 1e-8);
    }
  }
}

TEST(activations_in_place_and_on_threads) {
  constexpr int64_t n = 100003;
  for (int kind = 0; kind < ActivationKind::kCount; ++kind) {
    const ActivationInfo& info = kActivationInfo[kind];
    Case which(info.name);
    Buffer<float> x(n), first(n);
    x.fill_random(5, -9, 9);
    set_threads(1);
    cpu::activation_forward(
        {.kind = kind, .n = n, .x = x.data(), .y = first.data(), .a = info.a.value, .b = info.b.value});
    each_thread_count([&] {
      Buffer<float> y(n);
      std::memcpy(y.data(), x.data(), n * sizeof(float));
      cpu::activation_forward(
          {.kind = kind, .n = n, .x = y.data(), .y = y.data(), .a = info.a.value, .b = info.b.value});
      CHECK(y.same_bits(first));
    });
  }
}

namespace {

template <class T>
void check_prelu(int64_t outer, int64_t channels, int64_t inner, Place place) {
  const int64_t n = outer * channels * inner;
  Buffer<T> x(n, place), w(channels, place), y(n, place), dy(n, place), dx(n, place), dw(channels, place);
  x.fill_random(1, -2, 2), w.fill_random(2, -1, 1), dy.fill_random(3, -1, 1);
  cpu::prelu_forward({.dtype = kDType<T>,
                      .outer = outer,
                      .channels = channels,
                      .inner = inner,
                      .x = x.data(),
                      .w = w.data(),
                      .y = y.data()});
  cpu::prelu_backward({.dtype = kDType<T>,
                       .outer = outer,
                       .channels = channels,
                       .inner = inner,
                       .dy = dy.data(),
                       .x = x.data(),
                       .w = w.data(),
                       .dx = dx.data(),
                       .dw = dw.data()});
  std::vector<double> want_y(n), want_dx(n), want_dw(channels, 0.0);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t c = i / inner % channels;
    const double v = to_double(x[i]), g = to_double(dy[i]), weight = to_double(w[c]);
    want_y[i] = v > 0 ? v : weight * v;
    want_dx[i] = v > 0 ? g : weight * g;
    want_dw[c] += v > 0 ? 0 : v * g;
  }
  CHECK_CLOSE(y, want_y, kTolerance<T>, 1e-6);
  CHECK_CLOSE(dx, want_dx, kTolerance<T>, 1e-6);
  CHECK_CLOSE(dw, want_dw, 4 * kTolerance<T>, 1e-5);
}

template <class T>
void check_glu(int64_t outer, int64_t half, Place place) {
  Buffer<T> x(2 * outer * half, place), y(outer * half, place), dy(outer * half, place),
      dx(2 * outer * half, place);
  x.fill_random(1, -5, 5), dy.fill_random(2, -1, 1);
  cpu::glu_forward({.dtype = kDType<T>, .outer = outer, .half = half, .x = x.data(), .y = y.data()});
  cpu::glu_backward(
      {.dtype = kDType<T>, .outer = outer, .half = half, .dy = dy.data(), .x = x.data(), .dx = dx.data()});
  std::vector<double> want_y(outer * half), want_dx(2 * outer * half);
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < half; ++i) {
      const double u = to_double(x[2 * o * half + i]), s = sigmoid(to_double(x[(2 * o + 1) * half + i]));
      const double g = to_double(dy[o * half + i]);
      want_y[o * half + i] = u * s;
      want_dx[2 * o * half + i] = g * s;
      want_dx[(2 * o + 1) * half + i] = g * u * s * (1 - s);
    }
  }
  CHECK_CLOSE(y, want_y, 2 * kTolerance<T>, kTolerance<T>);
  CHECK_CLOSE(dx, want_dx, 2 * kTolerance<T>, kTolerance<T>);
}

}  // namespace

TEST(prelu_forward_and_backward) {
  for (Place place : kPlaces) {
    for (const auto& [outer, channels, inner] : {std::tuple{1, 1, 1},
                                                 {3, 1, 50},
                                                 {2, 5, 7},
                                                 {3, 4, 5000},
                                                 {9, 19, 1},
                                                 {600, 33, 1},
                                                 {0, 3, 4},
                                                 {2, 3, 0}}) {
      Case which(std::to_string(outer) + "x" + std::to_string(channels) + "x" + std::to_string(inner));
      check_prelu<float>(outer, channels, inner, place);
      check_prelu<double>(outer, channels, inner, place);
      check_prelu<BFloat16>(outer, channels, inner, place);
      check_prelu<Float16>(outer, channels, inner, place);
    }
  }
}

TEST(prelu_weight_gradient_does_not_depend_on_threads) {
  for (const int64_t inner : {1, 3000}) {
    const int64_t outer = inner == 1 ? 9000 : 3, channels = 21, n = outer * channels * inner;
    Buffer<float> x(n), w(channels), dy(n), dx(n), first(channels);
    x.fill_random(1), w.fill_random(2), dy.fill_random(3);
    PreluBackwardParams p{.outer = outer,
                          .channels = channels,
                          .inner = inner,
                          .dy = dy.data(),
                          .x = x.data(),
                          .w = w.data(),
                          .dx = dx.data(),
                          .dw = first.data()};
    set_threads(1);
    cpu::prelu_backward(p);
    each_thread_count([&] {
      Buffer<float> dw(channels);
      p.dw = dw.data();
      cpu::prelu_backward(p);
      CHECK(dw.same_bits(first));
    });
  }
}

TEST(glu_forward_and_backward) {
  for (Place place : kPlaces) {
    for (const auto& [outer, half] : {std::pair{1, 1}, {3, 7}, {2, 5000}, {0, 4}, {4, 0}}) {
      check_glu<float>(outer, half, place);
      check_glu<double>(outer, half, place);
      check_glu<BFloat16>(outer, half, place);
      check_glu<Float16>(outer, half, place);
    }
  }
}
