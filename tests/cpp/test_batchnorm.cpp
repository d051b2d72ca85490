// Batch normalisation against a plain reference in double, in both layouts, every dtype.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/capability.h"
#include "fastnn/batchnorm.h"
#include "harness.h"

namespace fastnn::testing {
namespace {

using Doubles = std::vector<double>;
constexpr double kEps = 1e-5, kMomentum = 0.1;

int64_t index(const BatchNormShape& s, int64_t n, int64_t c, int64_t l) {
  return s.channels_last ? (n * s.L + l) * s.C + c : (n * s.C + c) * s.L + l;
}

template <class F>
void each(const BatchNormShape& s, const F& f) {
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t c = 0; c < s.C; ++c)
      for (int64_t l = 0; l < s.L; ++l) f(c, index(s, n, c, l));
}

// The reference: every quantity of the op from x, dy, weight, bias and the running statistics.
struct Expected {
  Doubles mean, var, invstd, y, dx, dweight, dbias;

  Expected(const BatchNormShape& s, bool training, const Doubles& x, const Doubles& dy, const Doubles& weight,
           const Doubles& bias, const Doubles& running_mean, const Doubles& running_var)
      : mean(running_mean),
        var(running_var),
        invstd(s.C),
        y(x.size()),
        dx(x.size()),
        dweight(s.C),
        dbias(s.C) {
    const double count = static_cast<double>(s.N * s.L);
    if (training) {
      mean.assign(s.C, 0);
      var.assign(s.C, 0);
      each(s, [&](int64_t c, int64_t i) { mean[c] += x[i] / count; });
      each(s, [&](int64_t c, int64_t i) { var[c] += (x[i] - mean[c]) * (x[i] - mean[c]) / count; });
    }
    for (int64_t c = 0; c < s.C; ++c) invstd[c] = 1 / std::sqrt(var[c] + kEps);
    each(s, [&](int64_t c, int64_t i) {
      const double h = (x[i] - mean[c]) * invstd[c];
      y[i] = h * weight[c] + bias[c];
      dbias[c] += dy[i];
      dweight[c] += dy[i] * h;
    });
    each(s, [&](int64_t c, int64_t i) {
      const double h = (x[i] - mean[c]) * invstd[c];
      const double centred = training ? dy[i] - dbias[c] / count - h * dweight[c] / count : dy[i];
      dx[i] = centred * weight[c] * invstd[c];
    });
  }
};

template <class T>
struct Problem {
  using A = Compute<T>;
  BatchNormShape s;
  DType dtype;
  Buffer<T> x, dy, y, dx;
  Buffer<A> weight, bias, running_mean, running_var, save_mean, save_invstd, dweight, dbias;

  Problem(DType d, const BatchNormShape& shape, Place place, double offset)
      : s(shape),
        dtype(d),
        x(s.N * s.C * s.L, place),
        dy(x.size(), place),
        y(x.size(), place),
        dx(x.size(), place),
        weight(s.C, place),
        bias(s.C, place),
        running_mean(s.C, place),
        running_var(s.C, place),
        save_mean(s.C, place),
        save_invstd(s.C, place),
        dweight(s.C, place),
        dbias(s.C, place) {
    x.fill_random(1, offset - 2, offset + 2);
    dy.fill_random(2);
    weight.fill_random(3, 0.5, 1.5);
    bias.fill_random(4);
    running_mean.fill_random(5);
    running_var.fill_random(6, 0.5, 2);
  }

  Expected expected(bool training) const {
    return {s,
            training,
            x.doubles(),
            dy.doubles(),
            weight.doubles(),
            bias.doubles(),
            running_mean.doubles(),
            running_var.doubles()};
  }
  void forward(bool training) const {
    cpu::batchnorm_forward({.dtype = dtype,
                            .shape = s,
                            .x = x.data(),
                            .y = y.data(),
                            .weight = weight.data(),
                            .bias = bias.data(),
                            .running_mean = running_mean.data(),
                            .running_var = running_var.data(),
                            .save_mean = save_mean.data(),
                            .save_invstd = save_invstd.data(),
                            .training = training,
                            .momentum = kMomentum,
                            .eps = kEps});
  }
  void backward(bool training) const {
    cpu::batchnorm_backward({.dtype = dtype,
                             .shape = s,
                             .dy = dy.data(),
                             .x = x.data(),
                             .weight = weight.data(),
                             .mean = training ? save_mean.data() : running_mean.data(),
                             .invstd = save_invstd.data(),
                             .var = running_var.data(),
                             .dx = dx.data(),
                             .dweight = dweight.data(),
                             .dbias = dbias.data(),
                             .training = training,
                             .eps = kEps});
  }
};

template <class T>
void check(DType dtype, const BatchNormShape& s, Place place, double offset = 0) {
  Case shape("N " + std::to_string(s.N) + " C " + std::to_string(s.C) + " L " + std::to_string(s.L) +
             (s.channels_last ? " channels last" : ""));
  const double exact = dtype == DType::kFloat64 ? 1e-12 : 2e-6;
  const double rounded = dtype == DType::kBFloat16 ? 1e-2 : dtype == DType::kFloat16 ? 2e-3 : 4 * exact;
  const double count = static_cast<double>(s.N * s.L);
  for (bool training : {true, false}) {
    const Problem<T> p(dtype, s, place, offset);
    const Expected e = p.expected(training);
    Doubles running_mean = p.running_mean.doubles(), running_var = p.running_var.doubles();
    p.forward(training);
    if (training) {
      for (int64_t c = 0; c < s.C; ++c) {
        running_mean[c] = kMomentum * e.mean[c] + (1 - kMomentum) * running_mean[c];
        running_var[c] = kMomentum * e.var[c] * count / (count - 1) + (1 - kMomentum) * running_var[c];
      }
      CHECK_CLOSE(p.save_mean, e.mean, exact, exact);
      CHECK_CLOSE(p.save_invstd, e.invstd, exact, exact);
    }
    CHECK_CLOSE(p.running_mean, running_mean, exact, exact);
    CHECK_CLOSE(p.running_var, running_var, exact, exact);
    CHECK_CLOSE(p.y, e.y, rounded, rounded);
    p.backward(training);
    const double sums = exact * std::sqrt(count) * 4;
    CHECK_CLOSE(p.dx, e.dx, rounded, rounded * 2);
    CHECK_CLOSE(p.dweight, e.dweight, exact, sums);
    CHECK_CLOSE(p.dbias, e.dbias, exact, sums);
  }
}

const BatchNormShape kShapes[] = {{2, 1, 1, true}, {3, 5, 1, true}, {1, 3, 2},    {4, 3, 7},   {2, 8, 144},
                                  {5, 16, 17},     {1, 2, 4500},    {130, 3, 40}, {131, 5, 3}, {7, 3, 5},
                                  {40, 9, 15},     {2, 1, 2049},    {2, 1, 70000}};

TEST(batchnorm_matches_the_reference) {
  for (const BatchNormShape& shape : kShapes) {
    for (bool channels_last : {false, true}) {
      if (shape.channels_last && !channels_last) continue;
      BatchNormShape s = shape;
      s.channels_last = channels_last;
      for (Place place : kPlaces) {
        check<float>(DType::kFloat32, s, place);
        check<double>(DType::kFloat64, s, place);
      }
      check<BFloat16>(DType::kBFloat16, s, Place::kEndOdd);
      check<Float16>(DType::kFloat16, s, Place::kEndOdd);
    }
  }
}

TEST(batchnorm_takes_every_width_of_columns) {
  for (int64_t C : {1, 2, 4, 7, 8, 15, 16, 17, 31, 33, 48, 64, 65, 80, 112, 127, 300}) {
    check<float>(DType::kFloat32, {3, C, 5, true}, Place::kEnd);
    check<double>(DType::kFloat64, {129, C, 1, true}, Place::kEndOdd);
  }
}

// Data far from zero: no digits may be lost to sums of squares.
TEST(batchnorm_keeps_its_digits_under_an_offset) {
  for (bool channels_last : {false, true}) {
    const Problem<float> p(DType::kFloat32, {4, 3, 900, channels_last}, Place::kEnd, 30000);
    const Expected e = p.expected(true);
    p.forward(true);
    CHECK_CLOSE(p.save_invstd, e.invstd, 1e-6, 0);
    CHECK_CLOSE(p.y, e.y, 4e-6, 4e-6);
  }
}

TEST(batchnorm_is_the_same_for_any_thread_count) {
  const BatchNormShape shapes[] = {{3, 5, 3000}, {2, 64, 400}, {40, 33, 100, true}, {9, 3, 5000, true}};
  for (const BatchNormShape& s : shapes) {
    const Problem<float> first(DType::kFloat32, s, Place::kEnd, 1);
    bool have_first = false;
    each_thread_count([&] {
      const Problem<float> again(DType::kFloat32, s, Place::kEnd, 1);
      const Problem<float>& p = have_first ? again : first;
      p.forward(true);
      p.backward(true);
      CHECK(p.y.same_bits(first.y) && p.dx.same_bits(first.dx));
      CHECK(p.dweight.same_bits(first.dweight) && p.running_var.same_bits(first.running_var));
      have_first = true;
    });
  }
}

// Infinity: the mean is infinite and the variance NaN, in this channel alone. Sums that overflow a float
// don't matter.
TEST(batchnorm_meets_infinity_and_huge_values) {
  for (bool channels_last : {false, true}) {
    const BatchNormShape s = {2, 3, 50, channels_last};
    const Problem<float> p(DType::kFloat32, s, Place::kEnd, 0);
    p.x[index(s, 1, 0, 7)] = std::numeric_limits<float>::infinity();
    p.x[index(s, 0, 1, 3)] = 3e38f;
    p.x[index(s, 1, 1, 3)] = 2.9e38f;
    p.forward(true);
    CHECK(std::isinf(p.save_mean[0]) && std::isnan(p.save_invstd[0]));
    CHECK(std::isfinite(p.save_mean[1]) && p.save_invstd[1] >= 0);
    CHECK(std::isfinite(p.save_mean[2]) && std::isfinite(p.y[index(s, 0, 2, 0)]));
  }
}

TEST(batchnorm_may_lack_parameters_and_gradients) {
  const BatchNormShape s = {3, 4, 10};
  const Problem<float> p(DType::kFloat32, s, Place::kEnd, 0);
  cpu::batchnorm_forward({.shape = s,
                          .x = p.x.data(),
                          .y = p.y.data(),
                          .save_mean = p.save_mean.data(),
                          .save_invstd = p.save_invstd.data(),
                          .training = true,
                          .eps = kEps});
  cpu::batchnorm_backward({.shape = s,
                           .dy = p.dy.data(),
                           .x = p.x.data(),
                           .mean = p.save_mean.data(),
                           .invstd = p.save_invstd.data(),
                           .dx = p.dx.data(),
                           .training = true,
                           .eps = kEps});
  const Expected e(s, true, p.x.doubles(), p.dy.doubles(), Doubles(s.C, 1), Doubles(s.C, 0), {}, {});
  CHECK_CLOSE(p.y, e.y, 1e-5, 1e-5);
  CHECK_CLOSE(p.dx, e.dx, 1e-5, 1e-5);
}

}  // namespace
}  // namespace fastnn::testing
