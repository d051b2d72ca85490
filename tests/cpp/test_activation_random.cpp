// RReLU in training: forward and backward against a scalar reference that takes its words from the generator,
// whose own test is test_dropout.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cpu/kernels/dropout.h"
#include "fastnn/activation.h"
#include "harness.h"

namespace fastnn::testing {
namespace {

constexpr uint64_t kSeed = 0x0123456789abcdef, kOffset = 0xfedcba9876543210;
constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::nan("");

// The slope of each index, in the arithmetic of C.
template <class C>
std::vector<double> slopes(int64_t n, double lower, double upper) {
  std::vector<uint32_t> words(n);
  cpu::dropout_kernels().random(words.data(), 0, n, {kSeed, kOffset});
  constexpr int kBits = sizeof(C) == 8 ? 31 : 24;
  std::vector<double> r(n);
  for (int64_t i = 0; i < n; ++i) {
    const double u = std::ldexp(static_cast<double>(words[i] >> (32 - kBits)), -kBits);
    r[i] = static_cast<C>(lower) + u * (static_cast<C>(upper) - static_cast<C>(lower));
  }
  return r;
}

template <class T>
void check_rrelu(DType dtype, int64_t n, Place place, double lower, double upper) {
  Buffer<T> x(n, place), dy(n, place), y(n, place), dx(n, place);
  x.fill_random(1, -2, 2);
  dy.fill_random(2, -2, 2);
  const double specials[] = {kNaN, kInfinity, -kInfinity, 0.0, -0.0};
  for (int64_t i = 0; i < 5 && 3 * i + 2 < n; ++i) x[3 * i + 2] = from_double<T>(specials[i]);
  const std::vector<double> r = slopes<Compute<T>>(n, lower, upper);
  std::vector<double> expected_y = x.doubles(), expected_dx = dy.doubles();
  for (int64_t i = 0; i < n; ++i) {
    if (!(to_double(x[i]) <= 0)) continue;
    expected_y[i] *= r[i];
    expected_dx[i] *= r[i];
  }
  const double tolerance = dtype == DType::kBFloat16  ? 8e-3
                           : dtype == DType::kFloat16 ? 1e-3
                           : dtype == DType::kFloat64 ? 1e-14
                                                      : 1e-6;
  RreluParams params = {.dtype = dtype,
                        .n = n,
                        .x = x.data(),
                        .sign = x.data(),
                        .y = y.data(),
                        .lower = lower,
                        .upper = upper,
                        .seed = kSeed,
                        .offset = kOffset};
  cpu::rrelu(params);
  CHECK_CLOSE(y, expected_y, tolerance, tolerance);
  RreluParams backward = params;
  backward.x = dy.data();
  backward.y = dx.data();
  cpu::rrelu(backward);
  CHECK_CLOSE(dx, expected_dx, tolerance, tolerance);
  if (lower > 0) {  // y's sign serves as well, and dx may overwrite dy
    backward.sign = y.data();
    backward.y = dy.data();
    cpu::rrelu(backward);
    CHECK(dy.same_bits(dx));
  }
  params.y = x.data();
  cpu::rrelu(params);
  CHECK(x.same_bits(y));
}

TEST(rrelu_matches_the_reference) {
  const double bounds[][2] = {{0.125, 1.0 / 3}, {-0.5, 0.25}, {0.3, 0.3}};
  for (Place place : kPlaces) {
    for (const auto& [lower, upper] : bounds) {
      for (int64_t n : {0, 1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 100, 257}) {
        Case c("n = " + std::to_string(n) + ", lower = " + std::to_string(lower));
        check_rrelu<float>(DType::kFloat32, n, place, lower, upper);
        check_rrelu<double>(DType::kFloat64, n, place, lower, upper);
        check_rrelu<BFloat16>(DType::kBFloat16, n, place, lower, upper);
        check_rrelu<Float16>(DType::kFloat16, n, place, lower, upper);
      }
    }
  }
}

TEST(rrelu_is_the_same_for_any_thread_count) {
  const int64_t n = 300007;
  Buffer<float> x(n), first(n), y(n);
  x.fill_random(3);
  bool have_first = false;
  each_thread_count([&] {
    const Buffer<float>& out = have_first ? y : first;
    cpu::rrelu({.n = n,
                .x = x.data(),
                .sign = x.data(),
                .y = out.data(),
                .lower = 0.1,
                .upper = 0.3,
                .seed = 1,
                .offset = 2});
    CHECK(out.same_bits(first));
    have_first = true;
  });
}

}  // namespace
}  // namespace fastnn::testing
