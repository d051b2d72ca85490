// Embeddings and their bags against their definition in double.
#include <cmath>
#include <tuple>
#include <vector>

#include "fastnn/embedding.h"
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

// Bags of different length, of which some are empty, and every fifth entry padding.
struct Entries {
  std::vector<int64_t> index, offsets;
  int64_t padding = 1;
  Entries(int64_t V, int64_t E, int64_t B) : index(E), offsets(B + 1) {
    for (int64_t e = 0; e < E; ++e) index[e] = e % 5 == 4 ? padding : e * e * 7 % V;
    for (int64_t b = 0; b <= B; ++b) offsets[b] = E * b / B / 3 * 3;
    offsets[B] = E;
  }
};

template <class T>
void check_gather(int64_t V, int64_t D, int64_t E, Place place) {
  Buffer<T> weight(V * D, place), y(E * D, place);
  weight.fill_random(1, -2, 2);
  Buffer<int64_t> index(E, place);
  const Entries entries(V, E, 1);
  std::vector<double> want(E * D);
  for (int64_t e = 0; e < E; ++e) {
    index[e] = entries.index[e];
    for (int64_t d = 0; d < D; ++d) want[e * D + d] = to_double(weight[index[e] * D + d]);
  }
  CHECK(cpu::embedding_forward({.dtype = kDType<T>,
                                .V = V,
                                .D = D,
                                .E = E,
                                .index = index.data(),
                                .weight = weight.data(),
                                .y = y.data()}) == -1);
  CHECK_CLOSE(y, want, 0, 0);
}

template <class T>
void check_bags(BagMode mode, bool weights, int64_t V, int64_t D, int64_t E, int64_t B, Place place) {
  using A = Compute<T>;
  const Entries entries(V, E, B);
  Buffer<T> weight(V * D, place), y(B * D, place), dy(B * D, place), dw(V * D, place), dsample(E, place);
  Buffer<A> sample(E, place);
  weight.fill_random(1, -2, 2), dy.fill_random(2, -2, 2), sample.fill_random(3, -2, 2);
  std::vector<int64_t> size(B), winner(B * D);
  const bool max = mode == BagMode::kMax, mean = mode == BagMode::kMean;
  CHECK(cpu::embedding_bag_forward({.dtype = kDType<T>,
                                    .mode = mode,
                                    .V = V,
                                    .D = D,
                                    .B = B,
                                    .padding = entries.padding,
                                    .index = entries.index.data(),
                                    .offsets = entries.offsets.data(),
                                    .sample_weight = weights ? sample.data() : nullptr,
                                    .weight = weight.data(),
                                    .y = y.data(),
                                    .size = size.data(),
                                    .winner = winner.data()}) == -1);
  std::vector<double> want(B * D), want_dw(V * D), want_dsample(E), counts(V);
  for (int64_t index : entries.index) counts[index] += 1;
  for (int64_t b = 0; b < B; ++b) {
    int64_t count = 0;
    for (int64_t e = entries.offsets[b]; e < entries.offsets[b + 1]; ++e)
      count += entries.index[e] != entries.padding;
    if (mean) CHECK(size[b] == count);
    for (int64_t d = 0; d < D; ++d) {
      int64_t best = -1;
      for (int64_t e = entries.offsets[b]; e < entries.offsets[b + 1]; ++e) {
        const int64_t row = entries.index[e];
        if (row == entries.padding) continue;
        const double x = to_double(weight[row * D + d]), g = to_double(dy[b * D + d]);
        const double s = weights ? to_double(sample[e]) : 1;
        if (best < 0 || x > to_double(weight[best * D + d])) best = row;
        want[b * D + d] += s * x / static_cast<double>(mean ? count : 1);
        want_dw[row * D + d] += max ? 0 : s * g / static_cast<double>(mean ? count : 1) / counts[row];
        want_dsample[e] += g * x;
      }
      if (!max) continue;
      CHECK(winner[b * D + d] == best);
      want[b * D + d] = best < 0 ? 0 : to_double(weight[best * D + d]);
      if (best >= 0) want_dw[best * D + d] += to_double(dy[b * D + d]);
    }
  }
  CHECK_CLOSE(y, want, kTolerance<T>, 20 * kTolerance<T>);
  if (max) {
    cpu::embedding_max_backward({.dtype = kDType<T>,
                                 .V = V,
                                 .D = D,
                                 .B = B,
                                 .winner = winner.data(),
                                 .dy = dy.data(),
                                 .dw = dw.data()});
    CHECK_CLOSE(dw, want_dw, 4 * kTolerance<T>, 20 * kTolerance<T>);
    return;
  }
  CHECK(cpu::embedding_backward({.dtype = kDType<T>,
                                 .V = V,
                                 .D = D,
                                 .E = E,
                                 .B = B,
                                 .padding = entries.padding,
                                 .by_frequency = true,
                                 .index = entries.index.data(),
                                 .offsets = entries.offsets.data(),
                                 .sample_weight = weights ? sample.data() : nullptr,
                                 .size = mean ? size.data() : nullptr,
                                 .dy = dy.data(),
                                 .dw = dw.data()}) == -1);
  CHECK_CLOSE(dw, want_dw, kTolerance<T>, 20 * kTolerance<T>);
  CHECK(cpu::embedding_sample_weights({.dtype = kDType<T>,
                                       .V = V,
                                       .D = D,
                                       .B = B,
                                       .padding = entries.padding,
                                       .index = entries.index.data(),
                                       .offsets = entries.offsets.data(),
                                       .weight = weight.data(),
                                       .dy = dy.data(),
                                       .dsample_weight = dsample.data()}) == -1);
  CHECK_CLOSE(dsample, want_dsample, kTolerance<T>, 200 * kTolerance<T>);
}

template <class F>
void each_type(const F& f) {
  f.template operator()<float>(), f.template operator()<double>();
  f.template operator()<BFloat16>(), f.template operator()<Float16>();
}

}  // namespace

TEST(embedding_rows) {
  for (Place place : kPlaces)
    for (const auto& [V, D, E] : {std::tuple{2, 1, 1}, {7, 5, 20}, {30, 64, 9}, {11, 131, 40}, {3, 7, 0}})
      each_type([&]<class T>() { check_gather<T>(V, D, E, place); });
}

TEST(embedding_bags) {
  for (Place place : kPlaces) {
    for (const auto& [V, D, E, B] :
         {std::tuple{2, 1, 1, 1}, {7, 5, 20, 9}, {30, 64, 9, 2}, {11, 131, 40, 7}, {3, 20, 700, 2}}) {
      Case which(std::to_string(V) + "x" + std::to_string(D) + " " + std::to_string(E));
      each_type([&]<class T>() {
        for (BagMode mode : {BagMode::kSum, BagMode::kMean, BagMode::kMax})
          check_bags<T>(mode, false, V, D, E, B, place);
        check_bags<T>(BagMode::kSum, true, V, D, E, B, place);
      });
    }
  }
}

TEST(embedding_indices_out_of_range) {
  Buffer<float> weight(20), y(20), dy(20), dw(20);
  weight.fill_random(1, -1, 1), dy.fill_random(2, -1, 1);
  for (int64_t bad : {int64_t{-1}, int64_t{4}, int64_t{1} << 40}) {
    const std::vector<int64_t> index = {1, 3, bad, 0}, offsets = {0, 1, 4};
    CHECK(cpu::embedding_forward(
              {.V = 4, .D = 5, .E = 4, .index = index.data(), .weight = weight.data(), .y = y.data()}) == 2);
    CHECK(cpu::embedding_bag_forward({.V = 4,
                                      .D = 5,
                                      .B = 2,
                                      .index = index.data(),
                                      .offsets = offsets.data(),
                                      .weight = weight.data(),
                                      .y = y.data()}) == 2);
    CHECK(cpu::embedding_backward(
              {.V = 4, .D = 5, .E = 4, .index = index.data(), .dy = dy.data(), .dw = dw.data()}) == 2);
  }
}
