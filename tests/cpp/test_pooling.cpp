// Pooling: every algorithm that applies to a case against the reference loop, and that loop against values
// worked out by hand.
#include <cmath>
#include <limits>
#include <string>

#include "cpu/pooling/algorithms.h"
#include "harness.h"

using namespace fastnn;
using namespace fastnn::cpu;
using namespace fastnn::testing;

namespace {

struct Geometry {
  int64_t n, c, in[3], kernel[3], stride[3], padding[3], dilation[3];
  bool ceil_mode;
  int64_t out[3];  // adaptive where the first is not 0
};

int64_t output_size(const Geometry& g, int i) {
  const int64_t extent = (g.kernel[i] - 1) * g.dilation[i] + 1, span = g.in[i] + 2 * g.padding[i] - extent;
  int64_t out = (span + (g.ceil_mode ? g.stride[i] - 1 : 0)) / g.stride[i] + 1;
  if (g.ceil_mode && (out - 1) * g.stride[i] >= g.in[i] + g.padding[i]) --out;
  return out;
}

PoolShape shape_of(const Geometry& g, bool channels_last) {
  PoolShape s;
  s.n = g.n;
  s.c = g.c;
  s.adaptive = g.out[0] != 0;
  s.channels_last = channels_last;
  for (int i = 0; i < 3; ++i) {
    s.in[i] = g.in[i];
    s.kernel[i] = s.adaptive ? adaptive_kernel(g.in[i], g.out[i]) : g.kernel[i];
    s.stride[i] = g.stride[i];
    s.padding[i] = g.padding[i];
    s.dilation[i] = g.dilation[i];
    s.out[i] = s.adaptive ? g.out[i] : output_size(g, i);
  }
  return s;
}

const Geometry kCases[] = {
    {2, 3, {1, 6, 8}, {1, 2, 2}, {1, 2, 2}, {0, 0, 0}, {1, 1, 1}, false, {}},
    {1, 2, {1, 7, 75}, {1, 2, 2}, {1, 2, 2}, {0, 0, 0}, {1, 1, 1}, true, {}},
    {1, 2, {1, 11, 61}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {1, 1, 1}, false, {}},
    {1, 2, {1, 10, 60}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {1, 1, 1}, true, {}},
    {2, 17, {1, 5, 35}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}, false, {}},
    {1, 1, {1, 9, 14}, {1, 3, 2}, {1, 3, 3}, {0, 1, 0}, {1, 1, 1}, true, {}},
    {1, 2, {1, 9, 40}, {1, 2, 3}, {1, 4, 5}, {0, 0, 1}, {1, 1, 1}, false, {}},  // gaps between windows
    {1, 2, {1, 12, 33}, {1, 3, 3}, {1, 1, 2}, {0, 1, 1}, {1, 2, 3}, false, {}},
    {1, 2, {1, 12, 33}, {1, 2, 4}, {1, 2, 3}, {0, 1, 2}, {1, 3, 2}, true, {}},
    {3, 2, {1, 1, 2500}, {1, 1, 3}, {1, 1, 2}, {0, 0, 1}, {1, 1, 1}, false, {}},  // several column blocks
    {1, 2, {1, 1, 5000}, {1, 1, 2}, {1, 1, 3}, {0, 0, 0}, {1, 1, 1}, false, {}},
    {1, 3, {5, 6, 7}, {2, 2, 2}, {2, 2, 2}, {0, 0, 0}, {1, 1, 1}, false, {}},
    {2, 2, {5, 6, 9}, {3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}, true, {}},
    {1, 2, {6, 6, 9}, {3, 2, 3}, {1, 1, 1}, {1, 1, 1}, {2, 1, 2}, false, {}},
    {1, 1, {1, 20, 21}, {1, 17, 17}, {1, 2, 1}, {0, 8, 8}, {1, 1, 1}, false, {}},  // int32 codes
    {2, 3, {1, 7, 7}, {1, 7, 7}, {1, 7, 7}, {0, 0, 0}, {1, 1, 1}, false, {}},      // the whole plane
    {1, 2, {3, 9, 13}, {3, 9, 13}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, false, {}},
    {2, 3, {1, 9, 40}, {1, 2, 1}, {1, 3, 2}, {0, 0, 0}, {1, 1, 1}, false, {}},
    {3, 2, {1, 8, 37}, {1, 2, 2}, {1, 2, 2}, {0, 0, 0}, {1, 1, 1}, false, {}},
    {1, 1, {1, 4, 4}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, false, {}},
    {1, 1, {1, 1, 1}, {1, 2, 2}, {1, 2, 2}, {0, 1, 1}, {1, 1, 1}, false, {}},
    {1, 1, {1, 1, 1}, {1, 1, 2}, {1, 1, 1}, {0, 0, 1}, {1, 1, 2}, false, {}},  // a window that reads nothing
    {1, 3, {1, 20, 23}, {}, {1, 1, 1}, {}, {1, 1, 1}, false, {1, 7, 7}},
    {1, 3, {1, 20, 24}, {}, {1, 1, 1}, {}, {1, 1, 1}, false, {1, 5, 6}},
    {1, 2, {1, 3, 4}, {}, {1, 1, 1}, {}, {1, 1, 1}, false, {1, 5, 9}},  // larger than the input
    {2, 2, {5, 7, 9}, {}, {1, 1, 1}, {}, {1, 1, 1}, false, {2, 3, 4}},
    {1, 2, {1, 50, 60}, {}, {1, 1, 1}, {}, {1, 1, 1}, false, {1, 2, 7}},  // int32 codes
};

std::string describe(const PoolShape& s, const char* algorithm, int place) {
  std::string text = algorithm;
  for (const int64_t* v : {s.in, s.kernel, s.stride, s.padding, s.dilation})
    text += " [" + std::to_string(v[0]) + " " + std::to_string(v[1]) + " " + std::to_string(v[2]) + "]";
  return text + (s.adaptive ? " adaptive" : "") + (s.channels_last ? " channels_last" : "") + " place " +
         std::to_string(place);
}

// f(shape, place): every case in both layouts, the buffers' places in turn.
template <class F>
void each_case(const F& f) {
  int turn = 0;
  for (const Geometry& g : kCases)
    for (bool channels_last : {false, true}) f(shape_of(g, channels_last), kPlaces[turn++ % 4]);
}

const char* run_chosen(const MaxPoolParams& p) {
  return max_pool_forward(p);
}
const char* run_chosen(const MaxPoolBackwardParams& p) {
  return max_pool_backward(p);
}
const char* run_chosen(const AvgPoolParams& p) {
  return avg_pool_forward(p);
}
const char* run_chosen(const AvgPoolBackwardParams& p) {
  return avg_pool_backward(p);
}

// Every algorithm that applies, and what the library's entry makes of the call.
template <class Params, class F>
void each_fast_algorithm(const Params& p, const F& f) {
  const auto list = pool_algorithms<Params>();
  const auto entry = [](const Params& params) { run_chosen(params); };
  {
    Case what(describe(p.shape, "entry", 0));
    f(PoolAlgorithm<Params>{"entry", nullptr, entry});
  }
  for (const auto& algorithm : list.first(list.size() - 1))
    if (algorithm.applicable(p)) {
      Case what(describe(p.shape, algorithm.name, 0));
      f(algorithm);
    }
}

// Few distinct values, so that there are ties; some NaN and infinities, and whole windows of -inf.
template <class T>
void fill_awkward(const Buffer<T>& x, uint64_t seed) {
  const double inf = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < x.size(); ++i) {
    const double u = random_at(seed, i, 0, 1);
    double v = std::floor(random_at(seed + 1, i, -4, 5));
    if (u < 0.02) v = std::nan("");
    if (u > 0.98) v = inf;
    if (i % 97 < 20 || (u > 0.9 && u < 0.95)) v = -inf;
    x.data()[i] = from_double<T>(v);
  }
}

template <class T, class K>
void check_max(DType dtype, const PoolShape& s, Place place) {
  Buffer<T> x(s.inputs(), place), dy(s.outputs(), place), expected(s.outputs());
  Buffer<K> codes(s.outputs());
  fill_awkward(x, 1);
  dy.fill_random(3);
  MaxPoolParams p{dtype, s, x.data(), expected.data(), codes.data()};
  pool_algorithms<MaxPoolParams>().back().run(p);
  each_fast_algorithm(p, [&](const auto& algorithm) {
    Buffer<T> y(s.outputs(), place);
    Buffer<K> own_codes(s.outputs(), place);
    algorithm.run({dtype, s, x.data(), y.data(), own_codes.data()});
    CHECK_CLOSE(y, expected.doubles(), 0, 0);
    CHECK(own_codes.same_bits(codes));
  });
  p.codes = nullptr;
  each_fast_algorithm(p, [&](const auto& algorithm) {
    Buffer<T> y(s.outputs(), place);
    algorithm.run({dtype, s, x.data(), y.data(), nullptr});
    CHECK_CLOSE(y, expected.doubles(), 0, 0);
  });

  Buffer<T> dx_expected(s.inputs());
  const MaxPoolBackwardParams b{dtype, s, dy.data(), codes.data(), dx_expected.data()};
  pool_algorithms<MaxPoolBackwardParams>().back().run(b);
  const double rtol = dtype == DType::kBFloat16 ? 1e-2 : dtype == DType::kFloat16 ? 1e-3 : 1e-6;
  each_fast_algorithm(b, [&](const auto& algorithm) {
    Buffer<T> dx(s.inputs(), place);
    algorithm.run({dtype, s, dy.data(), codes.data(), dx.data()});
    CHECK_CLOSE(dx, dx_expected.doubles(), rtol, 1e-5);
  });
}

template <class T>
void check_avg(DType dtype, const PoolShape& s, Place place, bool include_pad, int64_t divisor) {
  const double rtol = dtype == DType::kBFloat16 ? 1e-2 : dtype == DType::kFloat16 ? 2e-3 : 2e-6;
  Buffer<T> x(s.inputs(), place), dy(s.outputs(), place), expected(s.outputs()), dx_expected(s.inputs());
  x.fill_random(5);
  dy.fill_random(7);
  const AvgPoolParams p{dtype, s, include_pad, divisor, x.data(), expected.data()};
  pool_algorithms<AvgPoolParams>().back().run(p);
  each_fast_algorithm(p, [&](const auto& algorithm) {
    Buffer<T> y(s.outputs(), place);
    algorithm.run({dtype, s, include_pad, divisor, x.data(), y.data()});
    CHECK_CLOSE(y, expected.doubles(), rtol, 1e-6);
  });
  const AvgPoolBackwardParams b{dtype, s, include_pad, divisor, dy.data(), dx_expected.data()};
  pool_algorithms<AvgPoolBackwardParams>().back().run(b);
  each_fast_algorithm(b, [&](const auto& algorithm) {
    Buffer<T> dx(s.inputs(), place);
    algorithm.run({dtype, s, include_pad, divisor, dy.data(), dx.data()});
    CHECK_CLOSE(dx, dx_expected.doubles(), rtol, 1e-6);
  });
}

template <class T>
void check_max_every_case(DType dtype) {
  each_case([&](const PoolShape& s, Place place) {
    pool_codes_are_bytes(s) ? check_max<T, uint8_t>(dtype, s, place) : check_max<T, int32_t>(dtype, s, place);
  });
}
template <class T>
void check_avg_every_case(DType dtype) {
  each_case([&](const PoolShape& s, Place place) {
    if (s.dilation[0] * s.dilation[1] * s.dilation[2] != 1) return;
    check_avg<T>(dtype, s, place, true, 0);
    if (s.adaptive) return;
    check_avg<T>(dtype, s, place, false, 0);
    check_avg<T>(dtype, s, place, true, 5);
  });
}

}  // namespace

TEST(pooling_max_float) {
  check_max_every_case<float>(DType::kFloat32);
}
TEST(pooling_max_double) {
  check_max_every_case<double>(DType::kFloat64);
}
TEST(pooling_max_bfloat16) {
  check_max_every_case<BFloat16>(DType::kBFloat16);
}
TEST(pooling_max_float16) {
  check_max_every_case<Float16>(DType::kFloat16);
}
TEST(pooling_avg_float) {
  check_avg_every_case<float>(DType::kFloat32);
}
TEST(pooling_avg_double) {
  check_avg_every_case<double>(DType::kFloat64);
}
TEST(pooling_avg_bfloat16) {
  check_avg_every_case<BFloat16>(DType::kBFloat16);
}
TEST(pooling_avg_float16) {
  check_avg_every_case<Float16>(DType::kFloat16);
}

// 3 x 3, stride 2, padding 1 over 4 x 4: ties, a NaN, a window of -inf, and the indices torch gives.
TEST(pooling_max_known_values) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const Geometry g{1, 1, {1, 4, 4}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {1, 1, 1}, false, {}};
  const PoolShape s = shape_of(g, false);
  Buffer<float> x({-inf, -inf, 2, 2,  //
                   -inf, -inf, 1, 2,  //
                   nan, 1, 0, 3,      //
                   nan, 0, 3, 1}),
      y(4);
  Buffer<uint8_t> codes(4);
  Buffer<int64_t> indices(4);
  cpu::max_pool_forward({DType::kFloat32, s, x.data(), y.data(), codes.data()});
  cpu::max_pool_indices({s, codes.data(), indices.data()});
  CHECK_CLOSE(y, (std::vector<double>{-inf, 2, nan, 3}), 0, 0);
  CHECK_CLOSE(indices, (std::vector<double>{0, 2, 12, 11}), 0, 0);
  CHECK_CLOSE(codes, (std::vector<double>{4, 4, 7, 5}), 0, 0);
}

TEST(pooling_avg_known_values) {
  const Geometry g{1, 1, {1, 1, 5}, {1, 1, 3}, {1, 1, 2}, {0, 0, 1}, {1, 1, 1}, true, {}};
  const PoolShape s = shape_of(g, false);
  Buffer<float> x({1, 2, 3, 4, 5}), y(3);
  cpu::avg_pool_forward({DType::kFloat32, s, true, 0, x.data(), y.data()});
  CHECK_CLOSE(y, (std::vector<double>{1, 3, 3}), 1e-7, 0);
  cpu::avg_pool_forward({DType::kFloat32, s, false, 0, x.data(), y.data()});
  CHECK_CLOSE(y, (std::vector<double>{1.5, 3, 4.5}), 1e-7, 0);
  cpu::avg_pool_forward({DType::kFloat32, s, true, 2, x.data(), y.data()});
  CHECK_CLOSE(y, (std::vector<double>{1.5, 4.5, 4.5}), 1e-7, 0);
}

TEST(pooling_same_for_any_thread_count) {
  const Geometry g{2, 5, {1, 40, 61}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {1, 1, 1}, false, {}};
  for (bool channels_last : {false, true}) {
    const PoolShape s = shape_of(g, channels_last);
    Buffer<float> x(s.inputs()), dy(s.outputs()), y1(s.outputs()), dx1(s.inputs());
    x.fill_random(1);
    dy.fill_random(2);
    set_threads(1);
    cpu::avg_pool_forward({DType::kFloat32, s, true, 0, x.data(), y1.data()});
    cpu::avg_pool_backward({DType::kFloat32, s, true, 0, dy.data(), dx1.data()});
    each_thread_count([&] {
      Buffer<float> y(s.outputs()), dx(s.inputs());
      cpu::avg_pool_forward({DType::kFloat32, s, true, 0, x.data(), y.data()});
      cpu::avg_pool_backward({DType::kFloat32, s, true, 0, dy.data(), dx.data()});
      CHECK(y.same_bits(y1));
      CHECK(dx.same_bits(dx1));
    });
  }
}
