// Cross-entropy and the losses of single elements against their definition in double.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "fastnn/loss.h"
#include "fastnn/loss_nll.h"
#include "fastnn/loss_pointwise.h"
#include "fastnn/loss_soft.h"
#include "harness.h"

using namespace fastnn;
using namespace fastnn::testing;

namespace {

// Of what is kept in T; losses are in the compute type.
template <class T>
constexpr double kTolerance = 2e-6;
template <>
constexpr double kTolerance<double> = 1e-13;
template <>
constexpr double kTolerance<BFloat16> = 0x1p-7;
template <>
constexpr double kTolerance<Float16> = 0x1p-10;
template <class T>
constexpr double kComputeTolerance = std::is_same_v<T, double> ? 1e-13 : 2e-6;

// Every third position is ignored.
template <class T>
void check_cross_entropy(int64_t N, int64_t C, int64_t inner, Place place) {
  using A = Compute<T>;
  const int64_t positions = N * inner, n = positions * C;
  Buffer<T> x(n, place), dx(n, place);
  Buffer<A> weight(C, place), peak(positions, place), sum(positions, place), loss(positions, place),
      dy(positions, place);
  x.fill_random(1, -8, 8), weight.fill_random(2, 0.5, 1.5), dy.fill_random(3, -1, 1);
  std::vector<int64_t> index(positions);
  for (int64_t i = 0; i < positions; ++i) index[i] = i % 3 == 2 ? -100 : i * 7 % C;
  const ClassTargets target{.index = index.data(), .class_weight = weight.data()};
  CHECK(cpu::first_bad_target(target, positions, C) == nullptr);
  cpu::cross_entropy_forward({.dtype = kDType<T>,
                              .N = N,
                              .C = C,
                              .inner = inner,
                              .target = target,
                              .x = x.data(),
                              .peak = peak.data(),
                              .sum = sum.data(),
                              .loss = loss.data()});
  cpu::cross_entropy_backward({.dtype = kDType<T>,
                               .N = N,
                               .C = C,
                               .inner = inner,
                               .target = target,
                               .dy = dy.data(),
                               .scale = 0.5,
                               .x = x.data(),
                               .peak = peak.data(),
                               .sum = sum.data(),
                               .dx = dx.data()});
  std::vector<double> want(positions), want_dx(n);
  for (int64_t i = 0; i < positions; ++i) {
    if (index[i] == -100) continue;
    const auto at = [&](int64_t c) { return (i / inner * C + c) * inner + i % inner; };
    double total = 0;
    for (int64_t c = 0; c < C; ++c) total += std::exp(to_double(x[at(c)]));
    const double w = to_double(weight[index[i]]), slope = 0.5 * w * to_double(dy[i]);
    want[i] = w * (std::log(total) - to_double(x[at(index[i])]));
    for (int64_t c = 0; c < C; ++c)
      want_dx[at(c)] = slope * (std::exp(to_double(x[at(c)])) / total - (c == index[i] ? 1 : 0));
  }
  CHECK_CLOSE(loss, want, kComputeTolerance<T>, kComputeTolerance<T>);
  CHECK_CLOSE(dx, want_dx, kTolerance<T>, kTolerance<T>);
}

// A distribution as target: of class indices, every third ignored, or of probabilities.
template <class T>
void check_soft(bool hard, int64_t N, int64_t C, int64_t inner, Place place) {
  using A = Compute<T>;
  const int64_t positions = N * inner, n = positions * C;
  const double smoothing = 0.25;
  Buffer<T> x(n, place), dx(n, place), probability(n, place);
  Buffer<A> weight(C, place), peak(positions, place), sum(positions, place), mass(positions, place),
      loss(positions, place), dy(positions, place);
  x.fill_random(1, -8, 8), weight.fill_random(2, 0.5, 1.5), dy.fill_random(3, -1, 1);
  probability.fill_random(4, 0, 1);
  std::vector<int64_t> index(positions);
  double weight_sum = 0;
  for (int64_t c = 0; c < C; ++c) weight_sum += to_double(weight[c]);
  for (int64_t i = 0; i < positions; ++i) index[i] = i % 3 == 2 ? -100 : i * 7 % C;
  SoftTargets target;
  target.smoothing = smoothing, target.weight_sum = weight_sum;
  target.hard.class_weight = weight.data();
  if (hard)
    target.hard.index = index.data();
  else
    target.probability = probability.data();
  cpu::soft_cross_entropy_forward({.dtype = kDType<T>,
                                   .N = N,
                                   .C = C,
                                   .inner = inner,
                                   .target = target,
                                   .x = x.data(),
                                   .peak = peak.data(),
                                   .sum = sum.data(),
                                   .mass = mass.data(),
                                   .loss = loss.data()});
  cpu::soft_cross_entropy_backward({.dtype = kDType<T>,
                                    .N = N,
                                    .C = C,
                                    .inner = inner,
                                    .target = target,
                                    .dy = dy.data(),
                                    .scale = 0.5,
                                    .x = x.data(),
                                    .peak = peak.data(),
                                    .sum = sum.data(),
                                    .mass = mass.data(),
                                    .dx = dx.data()});
  std::vector<double> want(positions), want_dx(n);
  const double share = smoothing / static_cast<double>(C);
  double slopes = 0;  // the largest that cancels in dx
  for (int64_t i = 0; i < positions; ++i) {
    if (hard && index[i] == -100) continue;
    const auto at = [&](int64_t c) { return (i / inner * C + c) * inner + i % inner; };
    const auto q = [&](int64_t c) {
      const double p = hard ? (c == index[i] ? 1 : 0) : to_double(probability[at(c)]);
      return to_double(weight[c]) * ((1 - smoothing) * p + share);
    };
    double total = 0, all = 0;
    for (int64_t c = 0; c < C; ++c) total += std::exp(to_double(x[at(c)])), all += q(c);
    slopes = std::max(slopes, all);
    for (int64_t c = 0; c < C; ++c) {
      want[i] += q(c) * (std::log(total) - to_double(x[at(c)]));
      want_dx[at(c)] = 0.5 * to_double(dy[i]) * (all * std::exp(to_double(x[at(c)])) / total - q(c));
    }
  }
  CHECK_CLOSE(loss, want, kComputeTolerance<T>, kComputeTolerance<T>);
  CHECK_CLOSE(dx, want_dx, kTolerance<T>, kTolerance<T> * std::max(1.0, slopes));
}

template <class T>
void check_nll(int64_t N, int64_t C, int64_t inner, Place place) {
  using A = Compute<T>;
  const int64_t positions = N * inner, n = positions * C;
  Buffer<T> x(n, place), dx(n, place);
  Buffer<A> weight(C, place), loss(positions, place), dy(positions, place);
  x.fill_random(1, -8, 0), weight.fill_random(2, 0.5, 1.5), dy.fill_random(3, -1, 1);
  std::vector<int64_t> index(positions);
  for (int64_t i = 0; i < positions; ++i) index[i] = i % 3 == 2 ? -100 : i * 7 % C;
  const ClassTargets target{.index = index.data(), .class_weight = weight.data()};
  cpu::nll_forward({.dtype = kDType<T>,
                    .N = N,
                    .C = C,
                    .inner = inner,
                    .target = target,
                    .x = x.data(),
                    .loss = loss.data()});
  cpu::nll_backward({.dtype = kDType<T>,
                     .N = N,
                     .C = C,
                     .inner = inner,
                     .target = target,
                     .dy = dy.data(),
                     .scale = 0.5,
                     .dx = dx.data()});
  std::vector<double> want(positions), want_dx(n);
  for (int64_t i = 0; i < positions; ++i) {
    if (index[i] == -100) continue;
    const int64_t at = (i / inner * C + index[i]) * inner + i % inner;
    want[i] = -to_double(weight[index[i]]) * to_double(x[at]);
    want_dx[at] = -0.5 * to_double(weight[index[i]]) * to_double(dy[i]);
  }
  CHECK_CLOSE(loss, want, kComputeTolerance<T>, kComputeTolerance<T>);
  CHECK_CLOSE(dx, want_dx, kTolerance<T>, kTolerance<T>);
}

// f<T>() for each element type.
template <class F>
void each_type(const F& f) {
  f.template operator()<float>(), f.template operator()<double>();
  f.template operator()<BFloat16>(), f.template operator()<Float16>();
}

// weights: those of elements repeat in runs, those of positive targets one after the other.
template <class T>
void check_pointwise(PointwiseLoss kind, int64_t n, Place place, bool weights = false) {
  Buffer<T> x(n, place), target(n, place), y(n, place), dy(n, place), dx(n, place);
  x.fill_random(1, -8, 8), target.fill_random(2, 0, 1), dy.fill_random(3, -1, 1);
  Buffer<T> w(3, place), positive(7, place);
  w.fill_random(4, 0.5, 1.5), positive.fill_random(5, 0.5, 1.5);
  const ElementWeights each{.data = weights ? w.data() : nullptr, .length = 3, .inner = 20};
  const ElementWeights of_positive{.data = weights ? positive.data() : nullptr, .length = 7};
  PointwiseLossParams p{.dtype = kDType<T>,
                        .kind = kind,
                        .count = n,
                        .x = x.data(),
                        .target = target.data(),
                        .y = y.data(),
                        .weight = each,
                        .positive_weight = of_positive};
  cpu::pointwise_loss_forward(p);
  cpu::pointwise_loss_backward({.dtype = kDType<T>,
                                .kind = kind,
                                .count = n,
                                .dy = dy.data(),
                                .x = x.data(),
                                .target = target.data(),
                                .dx = dx.data(),
                                .weight = each,
                                .positive_weight = of_positive});
  std::vector<double> want(n), want_dx(n);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = to_double(x[i]), t = to_double(target[i]);
    const bool squared = kind == PointwiseLoss::kSquared;
    const double factor = weights ? to_double(w[i / 20 % 3]) : 1,
                 q = weights ? to_double(positive[i % 7]) : 1;
    const double part = 1 + (q - 1) * t;
    want[i] = factor * (squared ? (v - t) * (v - t) : (1 - t) * v + part * std::log1p(std::exp(-v)));
    want_dx[i] = factor * to_double(dy[i]) * (squared ? 2 * (v - t) : part / (1 + std::exp(-v)) - q * t);
    total += want[i];
  }
  CHECK_CLOSE(y, want, kTolerance<T>, kTolerance<T>);
  CHECK_CLOSE(dx, want_dx, kTolerance<T>, kTolerance<T>);
  p.y = nullptr;
  CHECK(std::abs(cpu::pointwise_loss_forward(p) - total) <= kComputeTolerance<T> * total);
}

}  // namespace

TEST(cross_entropy_forward_and_backward) {
  for (Place place : kPlaces) {
    for (const auto& [N, C, inner] :
         {std::tuple{1, 1, 1}, {7, 10, 1}, {4, 64, 1}, {3, 5003, 1}, {2, 3, 5}, {2, 7, 70}, {1, 5, 131}}) {
      Case which(std::to_string(N) + "x" + std::to_string(C) + "x" + std::to_string(inner));
      check_cross_entropy<float>(N, C, inner, place);
      check_cross_entropy<double>(N, C, inner, place);
      check_cross_entropy<BFloat16>(N, C, inner, place);
      check_cross_entropy<Float16>(N, C, inner, place);
    }
  }
}

TEST(distributions_and_log_probabilities) {
  for (Place place : kPlaces) {
    for (const auto& [N, C, inner] :
         {std::tuple{1, 1, 1}, {7, 10, 1}, {4, 64, 1}, {3, 5003, 1}, {2, 3, 5}, {2, 7, 70}, {1, 5, 131}}) {
      Case which(std::to_string(N) + "x" + std::to_string(C) + "x" + std::to_string(inner));
      each_type([&]<class T>() {
        check_soft<T>(true, N, C, inner, place);
        check_soft<T>(false, N, C, inner, place);
        check_nll<T>(N, C, inner, place);
      });
    }
  }
}

TEST(weighted_elements) {
  for (Place place : kPlaces) {
    for (PointwiseLoss kind : {PointwiseLoss::kSquared, PointwiseLoss::kBinaryLogits}) {
      for (int64_t n : {1, 5, 64, 131, 9001}) {
        Case which(std::to_string(n));
        each_type([&]<class T>() { check_pointwise<T>(kind, n, place, true); });
      }
    }
  }
}

TEST(targets_out_of_bounds_are_found) {
  const std::vector<int64_t> index = {0, -100, 4, 5, -1};
  const ClassTargets target{.index = index.data()};
  CHECK(cpu::first_bad_target(target, 3, 5) == nullptr);
  CHECK(cpu::first_bad_target(target, 5, 5) == index.data() + 3);
  CHECK(cpu::first_bad_target(target, 5, 6) == index.data() + 4);
}

TEST(sums_of_losses_do_not_depend_on_threads) {
  constexpr int64_t n = 50000;
  Buffer<float> losses(n);
  losses.fill_random(1, 0, 5);
  set_threads(1);
  const double first = cpu::sum_of_losses(DType::kFloat32, losses.data(), n);
  each_thread_count([&] { CHECK(cpu::sum_of_losses(DType::kFloat32, losses.data(), n) == first); });
}

TEST(pointwise_losses) {
  for (Place place : kPlaces) {
    for (PointwiseLoss kind : {PointwiseLoss::kSquared, PointwiseLoss::kBinaryLogits}) {
      for (int64_t n : {1, 5, 64, 131, 9001}) {
        Case which(std::to_string(n));
        each_type([&]<class T>() { check_pointwise<T>(kind, n, place); });
      }
    }
  }
}
