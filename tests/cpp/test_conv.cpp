// Every convolution algorithm that is applicable against the plain loops in double, on odd shapes; thread
// counts.
#include <cmath>
#include <string>
#include <vector>

#include "cpu/conv/algorithms.h"
#include "harness.h"

using namespace fastnn;
using namespace fastnn::testing;

namespace {

struct Shape {
  int64_t n, c, k, g, in[3], kernel[3], stride[3], padding[3], dilation[3];
  int64_t extra;  // of the input beyond what the last window reads: output_padding
};

const Shape kShapes[] = {
    {2, 3, 5, 1, {1, 9, 11}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},
    {1, 7, 13, 1, {1, 14, 17}, {1, 3, 3}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0},  // in place
    {2, 16, 24, 1, {1, 8, 9}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0},   // pointwise, in place
    {1, 9, 20, 1, {1, 32, 32}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0},  // channels 4 KiB apart
    {1, 3, 8, 1, {1, 23, 21}, {1, 7, 7}, {1, 2, 2}, {0, 3, 3}, {1, 1, 1}, 0},   // first layer
    {2, 6, 6, 6, {1, 13, 15}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},   // depthwise
    {1, 4, 8, 4, {1, 12, 10}, {1, 5, 5}, {1, 2, 3}, {0, 2, 2}, {1, 1, 1}, 0},   // depthwise, two outputs
    {2, 12, 20, 4, {1, 7, 6}, {1, 3, 2}, {1, 1, 2}, {0, 1, 0}, {1, 2, 1}, 0},   // groups
    {1, 5, 4, 1, {1, 1, 300}, {1, 1, 5}, {1, 1, 1}, {0, 0, 8}, {1, 1, 4}, 0},   // one dimension, blocks of
                                                                                // columns
    {1, 2, 3, 1, {1, 1, 90}, {1, 1, 10}, {1, 1, 4}, {0, 0, 0}, {1, 1, 1}, 3},
    {1, 4, 6, 2, {5, 6, 7}, {3, 2, 3}, {1, 1, 1}, {1, 0, 1}, {1, 1, 1}, 0},  // three dimensions
    {2, 3, 4, 1, {6, 7, 5}, {2, 3, 3}, {2, 2, 2}, {0, 1, 1}, {1, 2, 1}, 0},
    {2, 6, 7, 1, {1, 4, 4}, {1, 3, 3}, {1, 3, 3}, {0, 0, 0}, {1, 1, 1}, 1},   // rows of dx that no window
                                                                              // reads
    {2, 6, 40, 1, {1, 5, 5}, {1, 1, 1}, {1, 2, 3}, {0, 0, 0}, {1, 1, 1}, 0},  // phases without taps
    {3, 8, 9, 1, {1, 4, 3}, {1, 4, 3}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0},   // kernel as large as the input
    {1, 1, 1, 1, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0},
    {1, 2, 2, 1, {1, 3, 3}, {1, 3, 3}, {1, 1, 1}, {0, 4, 4}, {1, 1, 1}, 0},      // more padding than kernel
    {2, 35, 39, 1, {1, 9, 33}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},   // several registers of each
    {5, 20, 50, 1, {1, 7, 7}, {1, 3, 3}, {1, 1, 2}, {0, 2, 2}, {1, 2, 2}, 0},    // dilation and stride
    {2, 450, 18, 1, {1, 3, 4}, {1, 1, 2}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0},   // blocks of steps
    {3, 1024, 9, 1, {1, 2, 3}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0},   // pixels 4 KiB apart
    {2, 36, 20, 2, {3, 5, 6}, {2, 3, 3}, {1, 2, 1}, {1, 1, 0}, {1, 1, 1}, 0},    // groups of registers
    {2, 19, 19, 19, {3, 6, 7}, {3, 2, 4}, {2, 1, 3}, {1, 1, 2}, {1, 3, 1}, 1},   // depthwise volumes
    {3, 160, 144, 1, {1, 2, 2}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},  // large weights
};

int64_t product(const int64_t (&v)[3]) {
  return v[0] * v[1] * v[2];
}

template <class Params, class T>
Params params_of(const Shape& s) {
  Params p;
  p.dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
  p.n = s.n, p.c = s.c, p.k = s.k, p.g = s.g;
  for (int d = 0; d < 3; ++d) {
    p.in[d] = s.in[d];
    p.kernel[d] = s.kernel[d];
    p.stride[d] = s.stride[d];
    p.padding[d] = s.padding[d];
    p.dilation[d] = s.dilation[d];
    p.out[d] = (s.in[d] + 2 * s.padding[d] - s.dilation[d] * (s.kernel[d] - 1) - 1) / s.stride[d] + 1;
    if (s.in[d] > 1) p.in[d] += s.extra;
    p.out[d] = std::min(
        p.out[d], (p.in[d] + 2 * s.padding[d] - s.dilation[d] * (s.kernel[d] - 1) - 1) / s.stride[d] + 1);
  }
  return p;
}

struct Sizes {
  int64_t x, w, y;
  explicit Sizes(const ConvGeometry& p)
      : x(p.n * p.c * product(p.in)),
        w(p.k * (p.c / p.g) * product(p.kernel)),
        y(p.n * p.k * product(p.out)) {}
};

void set(ConvForwardParams& p, const void* a, const void* b, const void* bias, void* out) {
  p.x = a, p.w = b, p.b = bias, p.y = out;
}
void set(ConvBackwardDataParams& p, const void* a, const void* b, const void* bias, void* out) {
  p.dy = a, p.w = b, p.b = bias, p.dx = out;
}
void set(ConvBackwardWeightParams& p, const void* a, const void* b, const void*, void* out) {
  p.dy = a, p.x = b, p.dw = out;
}

// What an algorithm may differ by from the exact result, for terms of about 1. Winograd's transforms round;
// copies to planes end there too; the others only add.
double tolerance(const std::string& algorithm, int64_t terms) {
  const bool rounds = algorithm == "winograd" || algorithm == "copied to planes";
  return rounds ? 1e-5 * std::sqrt(static_cast<double>(terms)) : 0;
}

// a and b: the operands; both are small whole numbers of sixteenths, so that float sums are exact in any
// order. `terms`: of a sum.
template <class T, class Params>
void check(const Shape& shape, cpu::ConvAlgorithms<Params> algorithms, int64_t Sizes::* a_size,
           int64_t Sizes::* b_size, int64_t Sizes::* out_size, int64_t channels, int64_t terms, Place place,
           bool with_bias, bool channels_last = false) {
  Params p = params_of<Params, T>(shape), r = params_of<Params, double>(shape);
  p.channels_last = r.channels_last = channels_last;
  const Sizes sizes(p);
  Buffer<T> a(sizes.*a_size, place), b(sizes.*b_size, place), bias(channels, place),
      out(sizes.*out_size, place);
  const auto fill = [](const Buffer<T>& buffer, uint64_t seed) {
    for (int64_t i = 0; i < buffer.size(); ++i) {
      buffer[i] = static_cast<T>(static_cast<int>(random_at(seed, i, -32, 32)) / 16.0);
    }
  };
  fill(a, 1), fill(b, 2), fill(bias, 3);
  Buffer<double> ra(a.doubles()), rb(b.doubles()), rbias(bias.doubles()), expected(sizes.*out_size);
  set(r, ra.data(), rb.data(), with_bias ? rbias.data() : nullptr, expected.data());
  cpu::conv_reference(r);
  set(p, a.data(), b.data(), with_bias ? bias.data() : nullptr, out.data());
  for (const auto& algorithm : algorithms) {
    if (!algorithm.applicable(p)) continue;
    const Case label(std::string(algorithm.name) + ", " + std::to_string(shape.c) + " -> " +
                     std::to_string(shape.k) + " channels of " + std::to_string(shape.in[1]) + " x " +
                     std::to_string(shape.in[2]) + ", " + name(place));
    out.fill(12345);
    algorithm.run(p);
    CHECK_CLOSE(out, expected.doubles(), 0, tolerance(algorithm.name, terms));
  }
}

template <class T>
void check_all(Place place) {
  for (const Shape& s : kShapes) {
    const int64_t taps = product(s.kernel);
    for (const bool last : {false, true}) {
      for (const bool bias : {false, true}) {
        check<T>(s, cpu::conv_forward_algorithms(last), &Sizes::x, &Sizes::w, &Sizes::y, s.k,
                 s.c / s.g * taps, place, bias, last);
        check<T>(s, cpu::conv_backward_data_algorithms(last), &Sizes::y, &Sizes::w, &Sizes::x, s.c,
                 s.k / s.g * taps, place, bias, last);
      }
      check<T>(s, cpu::conv_backward_weight_algorithms(last), &Sizes::y, &Sizes::x, &Sizes::w, s.k,
               s.n * product(s.in), place, false, last);
    }
  }
}

// Winograd where it is not chosen for its speed, too.
template <class P>
constexpr cpu::ConvAlgorithm<P> kWinograd[] = {
    {"winograd", [](const P&) { return true; }, [](const P&) { return true; }, cpu::conv_winograd}};
template <class P>
cpu::ConvAlgorithms<P> winograd() {
  return {kWinograd<P>, 1};
}

const Shape kWinogradShapes[] = {
    {2, 1, 1, 1, {1, 3, 3}, {1, 3, 3}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0},     // one output
    {1, 33, 51, 1, {1, 9, 11}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},  // part of a tile, of a panel
    {2, 51, 33, 1, {1, 10, 7}, {1, 3, 3}, {1, 1, 1}, {0, 0, 2}, {1, 1, 1}, 0},  // paddings of a kind each
    {1, 1, 16, 1, {1, 5, 75}, {1, 3, 3}, {1, 1, 1}, {0, 2, 1}, {1, 1, 1}, 0},   // more tiles than one run
    {3, 32, 64, 2, {1, 8, 8}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},   // groups
    {1, 260, 20, 1, {1, 4, 4}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},  // several chains
    {1, 4, 5, 1, {1, 2, 3}, {1, 3, 3}, {1, 1, 1}, {0, 4, 3}, {1, 1, 1}, 0},     // more padding than kernel
    {11, 24, 40, 1, {1, 14, 14}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},  // blocks across images
    {2, 5, 20, 1, {1, 13, 12}, {1, 3, 3}, {1, 1, 1}, {0, 2, 0}, {1, 2, 3}, 0},    // dilated
    {1, 33, 18, 1, {1, 3, 20}, {1, 3, 3}, {1, 1, 1}, {0, 5, 1}, {1, 4, 2}, 0},    // images without a row
    {2, 18, 20, 2, {5, 6, 7}, {3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, 0},     // three dimensions
    {1, 6, 35, 1, {4, 7, 9}, {2, 3, 3}, {1, 1, 1}, {3, 0, 2}, {2, 2, 1}, 0},      // and dilated in two
};

TEST(conv_winograd_is_the_reference) {
  for (const Shape& s : kWinogradShapes) {
    for (const Place place : kPlaces) {
      for (const bool last : {false, true}) {
        for (const bool bias : {false, true}) {
          check<float>(s, winograd<ConvForwardParams>(), &Sizes::x, &Sizes::w, &Sizes::y, s.k,
                       s.c / s.g * product(s.kernel), place, bias, last);
          check<float>(s, winograd<ConvBackwardDataParams>(), &Sizes::y, &Sizes::w, &Sizes::x, s.c,
                       s.k / s.g * product(s.kernel), place, bias, last);
        }
        check<float>(s, winograd<ConvBackwardWeightParams>(), &Sizes::y, &Sizes::x, &Sizes::w, s.k,
                     s.n * product(s.in), place, false, last);
      }
    }
  }
}

TEST(conv_float_is_the_reference) {
  for (const Place place : kPlaces) check_all<float>(place);
}

TEST(conv_double_is_the_reference) {
  for (const Place place : {Place::kEnd, Place::kStartOdd}) check_all<double>(place);
}

// Sums that depend on their order: the bits may not depend on the number of threads.
template <class Params>
void check_threads(const Shape& shape, cpu::ConvAlgorithms<Params> algorithms, int64_t Sizes::* a_size,
                   int64_t Sizes::* b_size, int64_t Sizes::* out_size, bool channels_last = false) {
  Params p = params_of<Params, float>(shape);
  p.channels_last = channels_last;
  const Sizes sizes(p);
  Buffer<float> a(sizes.*a_size), b(sizes.*b_size), out(sizes.*out_size), first(sizes.*out_size);
  a.fill_random(1);
  b.fill_random(2);
  for (const auto& algorithm : algorithms) {
    if (!algorithm.applicable(p)) continue;
    const Case label(algorithm.name);
    set_threads(1);
    set(p, a.data(), b.data(), nullptr, first.data());
    algorithm.run(p);
    set(p, a.data(), b.data(), nullptr, out.data());
    each_thread_count([&] {
      algorithm.run(p);
      CHECK(out.same_bits(first));
    });
  }
}

// Once: how work is shared does not depend on the instruction set.
TEST_ONCE(conv_bits_do_not_depend_on_threads) {
  const Shape shapes[] = {{3, 20, 24, 1, {1, 33, 35}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},
                          {5, 24, 24, 24, {1, 30, 31}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {1, 1, 1}, 0},
                          {4, 3, 16, 1, {1, 40, 41}, {1, 5, 5}, {1, 2, 2}, {0, 2, 2}, {1, 1, 1}, 0},
                          {3, 40, 36, 1, {1, 9, 8}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},
                          {4, 60, 70, 1, {1, 19, 21}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0}};
  for (const Shape& s : shapes) {
    for (const bool last : {false, true}) {
      check_threads(s, cpu::conv_forward_algorithms(last), &Sizes::x, &Sizes::w, &Sizes::y, last);
      check_threads(s, cpu::conv_backward_data_algorithms(last), &Sizes::y, &Sizes::w, &Sizes::x, last);
      check_threads(s, cpu::conv_backward_weight_algorithms(last), &Sizes::y, &Sizes::x, &Sizes::w, last);
    }
  }
}

TEST(conv_winograd_bits_do_not_depend_on_threads) {
  for (const Shape& s : kWinogradShapes) {
    for (const bool last : {false, true}) {
      check_threads(s, winograd<ConvForwardParams>(), &Sizes::x, &Sizes::w, &Sizes::y, last);
      check_threads(s, winograd<ConvBackwardDataParams>(), &Sizes::y, &Sizes::w, &Sizes::x, last);
      check_threads(s, winograd<ConvBackwardWeightParams>(), &Sizes::y, &Sizes::x, &Sizes::w, last);
    }
  }
}

// Several squares of channels; runs of tiles whose sums meet in dw.
const Shape kWinogradWeightShapes[] = {
    {1, 130, 132, 1, {1, 64, 66}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},
    {2, 40, 36, 2, {1, 66, 70}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, 0},
};

TEST_ONCE(conv_winograd_weight_squares_and_splits) {
  for (const Shape& s : kWinogradWeightShapes) {
    for (const bool last : {false, true}) {
      check<float>(s, winograd<ConvBackwardWeightParams>(), &Sizes::y, &Sizes::x, &Sizes::w, s.k,
                   s.n * product(s.in), Place::kEnd, false, last);
      check_threads(s, winograd<ConvBackwardWeightParams>(), &Sizes::y, &Sizes::x, &Sizes::w, last);
    }
  }
}

TEST(conv_bias_gradient) {
  for (const Place place : kPlaces) {
    const int64_t n = 3, channels = 5, plane = 77;
    Buffer<float> dy(n * channels * plane, place), db(channels, place);
    dy.fill_random(4);
    std::vector<double> expected(channels);
    for (int64_t i = 0; i < dy.size(); ++i) expected[i / plane % channels] += dy[i];
    cpu::conv_backward_bias({DType::kFloat32, n, channels, plane, dy.data(), db.data()});
    CHECK_CLOSE(db, expected, 1e-5, 1e-5);
    expected.assign(channels, 0);
    for (int64_t i = 0; i < dy.size(); ++i) expected[i % channels] += dy[i];
    cpu::conv_backward_bias({DType::kFloat32, n, channels, plane, dy.data(), db.data(), true});
    CHECK_CLOSE(db, expected, 1e-5, 1e-5);
  }
}

}  // namespace
