// Layer, RMS and group norm on guarded buffers, against formulas in double.
#include <cmath>

#include "fastnn/normalization.h"
#include "harness.h"

namespace fastnn::testing {
namespace {

// One stretch: statistics, y and the gradient of x from g = dy * weight; rms: around 0.
struct Reference {
  double mean = 0, rstd = 0;
  Reference(const std::vector<double>& x, double eps, bool rms) {
    const double n = static_cast<double>(x.size());
    if (!rms)
      for (double v : x) mean += v / n;
    double var = 0;
    for (double v : x) var += (v - mean) * (v - mean) / n;
    rstd = 1 / std::sqrt(var + eps);
  }
  std::vector<double> gradient(const std::vector<double>& x, const std::vector<double>& g, bool rms) const {
    const double n = static_cast<double>(x.size());
    double sum = 0, dot = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += rms ? 0 : g[i] / n, dot += g[i] * (x[i] - mean) * rstd / n;
    std::vector<double> dx(x.size());
    for (size_t i = 0; i < x.size(); ++i) dx[i] = (g[i] - sum - (x[i] - mean) * rstd * dot) * rstd;
    return dx;
  }
};

std::string text(std::initializer_list<int64_t> numbers, Place place) {
  std::string all(name(place));
  for (int64_t n : numbers) all.append(", ").append(std::to_string(n));
  return all;
}

template <class T>
constexpr double kUnit = sizeof(T) == 8   ? 2e-13
                         : sizeof(T) == 4 ? 1e-5
                                          : 2e-2;

template <class T>
constexpr DType kType = DType::kFloat32;
template <>
constexpr DType kType<double> = DType::kFloat64;
template <>
constexpr DType kType<BFloat16> = DType::kBFloat16;
template <>
constexpr DType kType<Float16> = DType::kFloat16;

template <class T>
void check_layer(int64_t rows, int64_t length, bool rms, bool affine, Place place) {
  using A = Compute<T>;
  const Case named(text({rows, length, rms}, place));
  Buffer<T> x(rows * length, place), y(rows * length, place), dy(rows * length, place),
      dx(rows * length, place);
  Buffer<A> w(length, place), b(length, place), mean(rows, place), rstd(rows, place);
  Buffer<A> dw(length, place), db(length, place);
  x.fill_random(1, -1, 3);
  dy.fill_random(2);
  w.fill_random(3, 0.5, 2);
  b.fill_random(4);
  const bool bias = affine && !rms;
  cpu::layer_norm_forward({.dtype = kType<T>,
                           .rows = rows,
                           .length = length,
                           .rms = rms,
                           .x = x.data(),
                           .y = y.data(),
                           .weight = affine ? w.data() : nullptr,
                           .bias = bias ? b.data() : nullptr,
                           .mean = rms ? nullptr : mean.data(),
                           .rstd = rstd.data(),
                           .eps = 1e-3});
  cpu::layer_norm_backward({.dtype = kType<T>,
                            .rows = rows,
                            .length = length,
                            .rms = rms,
                            .dy = dy.data(),
                            .x = x.data(),
                            .weight = affine ? w.data() : nullptr,
                            .mean = rms ? nullptr : mean.data(),
                            .rstd = rstd.data(),
                            .dx = dx.data(),
                            .dweight = affine ? dw.data() : nullptr,
                            .dbias = bias ? db.data() : nullptr});
  const auto xs = x.doubles(), dys = dy.doubles(), ws = w.doubles(), bs = b.doubles();
  std::vector<double> ys, dxs, dws(length), dbs(length);
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<double> row(xs.begin() + r * length, xs.begin() + (r + 1) * length);
    const Reference reference(row, 1e-3, rms);
    std::vector<double> g(length);
    for (int64_t i = 0; i < length; ++i) {
      const double unit = (row[i] - reference.mean) * reference.rstd, in = dys[r * length + i];
      ys.push_back(unit * (affine ? ws[i] : 1) + (bias ? bs[i] : 0));
      g[i] = in * (affine ? ws[i] : 1);
      dws[i] += in * unit;
      dbs[i] += in;
    }
    const auto gradient = reference.gradient(row, g, rms);
    dxs.insert(dxs.end(), gradient.begin(), gradient.end());
  }
  CHECK_CLOSE(y, ys, kUnit<T>, kUnit<T>);
  CHECK_CLOSE(dx, dxs, kUnit<T>, kUnit<T>);
  if (affine) CHECK_CLOSE(dw, dws, kUnit<float>, 10 * kUnit<float>);
  if (bias) CHECK_CLOSE(db, dbs, kUnit<float>, 10 * kUnit<float>);
}

template <class T>
void check_group(GroupNormShape s, bool affine, Place place) {
  using A = Compute<T>;
  const int64_t size = s.N * s.C * s.L, width = s.C / s.G;
  const Case named(text({s.N, s.C, s.L, s.G, s.channels_last}, place));
  Buffer<T> x(size, place), y(size, place), dy(size, place), dx(size, place);
  Buffer<A> w(s.C, place), b(s.C, place), mean(s.N * s.G, place), rstd(s.N * s.G, place);
  Buffer<A> dw(s.C, place), db(s.C, place);
  x.fill_random(1, -1, 3);
  dy.fill_random(2);
  w.fill_random(3, 0.5, 2);
  b.fill_random(4);
  cpu::group_norm_forward({.dtype = kType<T>,
                           .shape = s,
                           .x = x.data(),
                           .y = y.data(),
                           .weight = affine ? w.data() : nullptr,
                           .bias = affine ? b.data() : nullptr,
                           .mean = mean.data(),
                           .rstd = rstd.data(),
                           .eps = 1e-3});
  cpu::group_norm_backward({.dtype = kType<T>,
                            .shape = s,
                            .dy = dy.data(),
                            .x = x.data(),
                            .weight = affine ? w.data() : nullptr,
                            .mean = mean.data(),
                            .rstd = rstd.data(),
                            .dx = dx.data(),
                            .dweight = affine ? dw.data() : nullptr,
                            .dbias = affine ? db.data() : nullptr});
  const auto xs = x.doubles(), dys = dy.doubles(), ws = w.doubles(), bs = b.doubles();
  std::vector<double> ys(size), dxs(size), dws(s.C), dbs(s.C);
  for (int64_t n = 0; n < s.N; ++n) {
    for (int64_t g = 0; g < s.G; ++g) {
      const auto at = [&](int64_t k, int64_t l) {
        const int64_t c = g * width + k;
        return s.channels_last ? (n * s.L + l) * s.C + c : (n * s.C + c) * s.L + l;
      };
      std::vector<double> values, slopes;
      for (int64_t k = 0; k < width; ++k) {
        for (int64_t l = 0; l < s.L; ++l) {
          values.push_back(xs[at(k, l)]);
          slopes.push_back(dys[at(k, l)] * (affine ? ws[g * width + k] : 1));
        }
      }
      const Reference reference(values, 1e-3, false);
      const auto gradient = reference.gradient(values, slopes, false);
      for (int64_t k = 0; k < width; ++k) {
        const int64_t c = g * width + k;
        for (int64_t l = 0; l < s.L; ++l) {
          const double unit = (xs[at(k, l)] - reference.mean) * reference.rstd;
          ys[at(k, l)] = unit * (affine ? ws[c] : 1) + (affine ? bs[c] : 0);
          dxs[at(k, l)] = gradient[k * s.L + l];
          dws[c] += dys[at(k, l)] * unit;
          dbs[c] += dys[at(k, l)];
        }
      }
    }
  }
  CHECK_CLOSE(y, ys, kUnit<T>, kUnit<T>);
  CHECK_CLOSE(dx, dxs, kUnit<T>, kUnit<T>);
  if (affine) CHECK_CLOSE(dw, dws, kUnit<float>, 10 * kUnit<float>);
  if (affine) CHECK_CLOSE(db, dbs, kUnit<float>, 10 * kUnit<float>);
}

template <class F>
void each_type(const F& f) {
  f(float{});
  f(double{});
  f(BFloat16{});
  f(Float16{});
}

TEST(normalization_of_rows) {
  for (Place place : kPlaces) {
    for (auto [rows, length] :
         {std::pair<int64_t, int64_t>{1, 3}, {5, 7}, {9, 16}, {4, 65}, {131, 33}, {2, 2049}, {3, 5001}}) {
      for (bool rms : {false, true}) {
        each_type([&, rows = rows, length = length](auto t) {
          for (bool affine : {false, true}) check_layer<decltype(t)>(rows, length, rms, affine, place);
        });
      }
    }
  }
}

TEST(group_norm) {
  const GroupNormShape shapes[] = {{2, 6, 1, 2},         {3, 6, 5, 3},         {2, 4, 17, 2},
                                   {2, 6, 131, 6},       {1, 6, 700, 2},       {1, 3, 2500, 1},
                                   {2, 70, 40, 7, true}, {2, 5, 300, 5, true}, {1, 4, 257, 1, true}};
  for (Place place : kPlaces) {
    for (const GroupNormShape& s : shapes) {
      each_type([&](auto t) {
        for (bool affine : {false, true}) check_group<decltype(t)>(s, affine, place);
      });
    }
  }
}

// Few long rows are split over threads, many short ones are not: the bits are the same.
TEST(normalization_of_rows_on_any_number_of_threads) {
  for (auto [rows, length] : {std::pair<int64_t, int64_t>{3, 40000}, {700, 300}}) {
    Buffer<float> x(rows * length), dy(rows * length), w(length), rstd(rows), mean(rows);
    x.fill_random(1);
    dy.fill_random(2);
    w.fill_random(3);
    Buffer<float> first(3 * rows * length), now(3 * rows * length);
    bool begun = false;
    each_thread_count([&, rows = rows, length = length] {
      const Buffer<float>& out = begun ? now : first;
      out.fill(0);
      float* y = out.data();
      cpu::layer_norm_forward({.rows = rows,
                               .length = length,
                               .x = x.data(),
                               .y = y,
                               .weight = w.data(),
                               .mean = mean.data(),
                               .rstd = rstd.data(),
                               .eps = 1e-5});
      cpu::layer_norm_backward({.rows = rows,
                                .length = length,
                                .dy = dy.data(),
                                .x = x.data(),
                                .weight = w.data(),
                                .mean = mean.data(),
                                .rstd = rstd.data(),
                                .dx = y + rows * length,
                                .dweight = y + 2 * rows * length,
                                .dbias = y + 2 * rows * length + length});
      if (begun) CHECK(now.same_bits(first));
      begun = true;
    });
  }
}

TEST(running_statistics) {
  const int64_t N = 3, C = 2, L = 50;
  Buffer<float> x(N * C * L), y(N * C * L), mean(N * C), rstd(N * C), running_mean(C), running_var(C);
  x.fill_random(1, 0, 4);
  running_mean.fill(1);
  running_var.fill(2);
  cpu::group_norm_forward({.shape = {N, C, L, C},
                           .x = x.data(),
                           .y = y.data(),
                           .mean = mean.data(),
                           .rstd = rstd.data(),
                           .running_mean = running_mean.data(),
                           .running_var = running_var.data(),
                           .momentum = 0.25,
                           .eps = 1e-5});
  std::vector<double> means(C), vars(C);
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t n = 0; n < N; ++n) {
      double m = 0, v = 0;
      for (int64_t l = 0; l < L; ++l) m += x[(n * C + c) * L + l] / double(L);
      for (int64_t l = 0; l < L; ++l) v += std::pow(x[(n * C + c) * L + l] - m, 2) / double(L - 1);
      means[c] += m / N;
      vars[c] += v / N;
    }
    means[c] = 0.25 * means[c] + 0.75 * 1;
    vars[c] = 0.25 * vars[c] + 0.75 * 2;
  }
  CHECK_CLOSE(running_mean, means, 1e-6, 1e-6);
  CHECK_CLOSE(running_var, vars, 1e-6, 1e-6);
}

}  // namespace
}  // namespace fastnn::testing
