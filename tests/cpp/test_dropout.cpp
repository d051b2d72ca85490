// Dropout: the generator against its published vectors, the mask against a plain reference.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/kernels/dropout.h"
#include "fastnn/dropout.h"
#include "harness.h"

namespace fastnn::testing {
namespace {

struct Words {
  uint32_t w[4];
};

Words philox(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 7; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c.w[0], p1 = uint64_t{0xCD9E8D57} * c.w[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

uint32_t word(int64_t i, uint64_t seed, uint64_t offset) {
  const uint64_t counter = static_cast<uint64_t>(i) / 4;
  const auto low = [](uint64_t v) { return static_cast<uint32_t>(v); };
  return philox({{low(counter), low(counter >> 32), low(offset), low(offset >> 32)}}, low(seed),
                low(seed >> 32))
      .w[i % 4];
}

bool decision(int64_t i, double p, uint64_t seed, uint64_t offset) {
  const uint32_t threshold = static_cast<uint32_t>(std::nearbyint(p * 4294967296.0));
  const auto half = [&](uint64_t o) {
    return word(i / 64 * 32 + i % 32, seed, o) >> i % 64 / 32 * 16 & 0xffff;
  };
  const uint32_t first = half(offset);
  return first < threshold >> 16 ||
         (first == threshold >> 16 && half(offset ^ uint64_t{1} << 63) < (threshold & 0xffff));
}

constexpr uint64_t kSeed = 0x0123456789abcdef, kOffset = 0xfedcba9876543210;

// Random123's known-answer vectors for philox4x32-7.
TEST(philox_known_answers) {
  const struct {
    uint64_t counter, offset, seed;
    uint32_t words[4];
  } known[] = {
      {0, 0, 0, {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}},
      {~0ull, ~0ull, ~0ull, {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}},
      {0x85a308d3243f6a88,
       0x0370734413198a2e,
       0x299f31d0a4093822,
       {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}},
  };
  for (const auto& k : known) {
    uint32_t words[4];
    cpu::dropout_kernels().random(words, k.counter, 4, {k.seed, k.offset});
    for (int i = 0; i < 4; ++i) CHECK(words[i] == k.words[i]);
  }
}

TEST(philox_stream_matches_the_scalar_generator) {
  std::vector<uint32_t> words(1001);
  const int64_t first = (int64_t{1} << 34) - 200;  // the counter's lower word wraps on the way
  cpu::dropout_kernels().random(words.data(), first / 4, words.size(), {kSeed, kOffset});
  int wrong = 0;
  for (size_t i = 0; i < words.size(); ++i) wrong += words[i] != word(first + i, kSeed, kOffset);
  CHECK(wrong == 0);
}

template <class T>
void check_dropout(DType dtype, int64_t decisions, int64_t length, Place place, bool alpha) {
  const double p = 0.3, scale = alpha ? 0.9 : 1 / 0.7;
  const double kept = alpha ? 0.25 : 0, dropped = alpha ? -1.5 : 0;
  Buffer<T> x(decisions * length, place), y(decisions * length, place);
  x.fill_random(1, -2, 2);
  if (x.size() > 5) x[5] = from_double<T>(std::numeric_limits<double>::infinity());
  std::vector<double> expected = x.doubles();
  for (int64_t i = 0; i < decisions; ++i) {
    const bool drop = decision(i, p, kSeed, kOffset);
    for (int64_t j = 0; j < length; ++j) {
      double& v = expected[i * length + j];
      v = drop ? v * 0 + dropped : v * scale + kept;
    }
  }
  const double tolerance = dtype == DType::kBFloat16 ? 8e-3 : dtype == DType::kFloat16 ? 1e-3 : 1e-6;
  const DropoutParams params = {.dtype = dtype,
                                .decisions = decisions,
                                .length = length,
                                .x = x.data(),
                                .y = y.data(),
                                .p = p,
                                .scale = scale,
                                .kept = kept,
                                .dropped = dropped,
                                .seed = kSeed,
                                .offset = kOffset};
  cpu::dropout(params);
  CHECK_CLOSE(y, expected, tolerance, tolerance);
  DropoutParams inplace = params;
  inplace.y = x.data();
  cpu::dropout(inplace);
  CHECK(x.same_bits(y));
}

TEST(dropout_matches_the_reference) {
  for (Place place : kPlaces) {
    for (bool alpha : {false, true}) {
      for (int64_t n : {0, 1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 100, 257}) {
        Case c("n = " + std::to_string(n));
        check_dropout<float>(DType::kFloat32, n, 1, place, alpha);
        check_dropout<double>(DType::kFloat64, n, 1, place, alpha);
        check_dropout<BFloat16>(DType::kBFloat16, n, 1, place, alpha);
        check_dropout<Float16>(DType::kFloat16, n, 1, place, alpha);
        for (int64_t length : {2, 9, 35}) {
          check_dropout<float>(DType::kFloat32, n, length, place, alpha);
          check_dropout<double>(DType::kFloat64, n, length, place, alpha);
          check_dropout<BFloat16>(DType::kBFloat16, n, length, place, alpha);
        }
      }
    }
  }
}

// Long enough for a few of the ties that the second half-word decides.
TEST(dropout_decides_ties) {
  const int64_t n = 400000;
  int64_t ties = 0;
  for (int64_t i = 0; i < n; ++i)
    ties += (word(i, kSeed, kOffset) & 0xffff) == static_cast<uint32_t>(0.3 * 65536);
  CHECK(ties > 0);
  check_dropout<float>(DType::kFloat32, n, 1, Place::kEnd, false);
}

TEST(dropout_is_the_same_for_any_thread_count) {
  const int64_t n = 300007;
  Buffer<float> x(n), first(n), y(n);
  x.fill_random(3);
  bool have_first = false;
  each_thread_count([&] {
    const Buffer<float>& out = have_first ? y : first;
    cpu::dropout(
        {.decisions = n, .x = x.data(), .y = out.data(), .p = 0.5, .scale = 2, .seed = 1, .offset = 2});
    CHECK(out.same_bits(first));
    have_first = true;
  });
}

TEST(dropout_drops_the_share_that_p_says) {
  const int64_t n = 1 << 20;
  Buffer<float> x(n), y(n);
  x.fill(1);
  for (double p : {1e-12, 0.1, 0.5, 0.9}) {
    cpu::dropout(
        {.decisions = n, .x = x.data(), .y = y.data(), .p = p, .scale = 1, .seed = kSeed, .offset = 0});
    double dropped = 0;
    for (int64_t i = 0; i < n; ++i) dropped += y[i] == 0;
    CHECK(std::abs(dropped - n * p) <= 5 * std::sqrt(n * p * (1 - p)) + 1e-3);
  }
}

}  // namespace
}  // namespace fastnn::testing
