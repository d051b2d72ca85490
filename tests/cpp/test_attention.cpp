// Attention against its definition in double: tiles, masks, causal, shared heads, dropout, strided views; the
// same bits for any number of threads.
#include <cmath>
#include <limits>
#include <vector>

#include "fastnn/attention.h"
#include "fastnn/dropout.h"
#include "harness.h"

using namespace fastnn;
using namespace fastnn::testing;

namespace {

enum class Masked { kNo, kBool, kAdded };

struct Setting {
  AttentionShape shape;
  bool causal = false;
  Masked mask = Masked::kNo;
  double p = 0;
};

template <class T>
AttentionView heads_in_rows(const Buffer<T>& b, int64_t H, int64_t L, int64_t E) {
  return {b.data(), L * H * E, E, H * E};  // [N, L, H, E] seen as [N, H, L, E]
}

// 0 or 1 / (1 - p) for each element: dropout's own kernel on ones, a row of whole batches each.
std::vector<double> factors(const Setting& s) {
  const AttentionShape& a = s.shape;
  const int64_t columns = attention_row_decisions(a.S), rows = a.N * a.H * a.L;
  Buffer<float> z(rows * columns);
  z.fill(1);
  if (s.p > 0) {
    cpu::dropout({.decisions = rows * columns,
                  .x = z.data(),
                  .y = z.data(),
                  .p = s.p,
                  .scale = 1 / (1 - s.p),
                  .seed = 3,
                  .offset = 4});
  }
  std::vector<double> out;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < a.S; ++j) out.push_back(z[r * columns + j]);
  return out;
}

template <class T>
struct Run {
  AttentionShape a;
  Buffer<T> q, k, v, y, dy, lse, dq, dk, dv, added;
  Buffer<uint8_t> seen;

  Run(const AttentionShape& s, Place place)
      : a(s),
        q(s.N * s.H * s.L * s.E, place),
        k(s.N * s.HK * s.S * s.E, place),
        v(s.N * s.HK * s.S * s.EV, place),
        y(s.N * s.H * s.L * s.EV, place),
        dy(y.size(), place),
        lse(s.N * s.H * s.L, place),
        dq(q.size(), place),
        dk(k.size(), place),
        dv(v.size(), place),
        added(s.L * s.S, place),
        seen(s.L * s.S, place) {
    q.fill_random(1), k.fill_random(2), v.fill_random(3), dy.fill_random(4), added.fill_random(5, -2, 2);
    for (int64_t i = 0; i < seen.size(); ++i) seen[i] = i / s.S != s.L / 2 && random_at(6, i, 0, 1) < 0.7;
  }

  void operator()(const Setting& s, double scale) const {
    const AttentionInputs in = {.dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32,
                                .shape = a,
                                .q = heads_in_rows(q, a.H, a.L, a.E),
                                .k = heads_in_rows(k, a.HK, a.S, a.E),
                                .v = heads_in_rows(v, a.HK, a.S, a.EV),
                                .scale = scale,
                                .causal = s.causal,
                                .mask = {s.mask == Masked::kBool    ? static_cast<void*>(seen.data())
                                         : s.mask == Masked::kAdded ? static_cast<void*>(added.data())
                                                                    : nullptr,
                                         0, 0, a.S},
                                .mask_is_bool = s.mask == Masked::kBool,
                                .p = s.p,
                                .seed = 3,
                                .offset = 4};
    const AttentionView out = heads_in_rows(y, a.H, a.L, a.EV);
    cpu::attention_forward({.in = in, .y = out, .lse = lse.data()});
    cpu::attention_backward({.in = in,
                             .y = out,
                             .dy = heads_in_rows(dy, a.H, a.L, a.EV),
                             .lse = lse.data(),
                             .dq = heads_in_rows(dq, a.H, a.L, a.E),
                             .dk = heads_in_rows(dk, a.HK, a.S, a.E),
                             .dv = heads_in_rows(dv, a.HK, a.S, a.EV)});
  }
};

template <class T>
void check(const Setting& s, Place place, double tolerance) {
  const AttentionShape& a = s.shape;
  const double scale = 1 / std::sqrt(static_cast<double>(a.E));
  const Run<T> run(a, place);
  run(s, scale);
  const auto q = run.q.doubles(), k = run.k.doubles(), v = run.v.doubles(), dy = run.dy.doubles(),
             z = factors(s);
  std::vector<double> y(run.y.size()), dq(q.size()), dk(k.size()), dv(v.size()), p(a.S), dp(a.S);
  for (int64_t n = 0; n < a.N; ++n)
    for (int64_t h = 0; h < a.H; ++h)
      for (int64_t i = 0; i < a.L; ++i) {
        const int64_t hk = h / (a.H / a.HK);
        const int64_t qi = ((n * a.L + i) * a.H + h) * a.E, yi = ((n * a.L + i) * a.H + h) * a.EV;
        const auto key = [&](int64_t j, int64_t e) { return ((n * a.S + j) * a.HK + hk) * a.E + e; };
        const auto value = [&](int64_t j, int64_t e) { return ((n * a.S + j) * a.HK + hk) * a.EV + e; };
        double sum = 0, delta = 0;
        for (int64_t j = 0; j < a.S; ++j) {
          double score = 0;
          for (int64_t e = 0; e < a.E; ++e) score += q[qi + e] * k[key(j, e)];
          score *= scale;
          if (s.mask == Masked::kAdded) score += to_double(run.added[i * a.S + j]);
          const bool hidden = (s.causal && j > i) || (s.mask == Masked::kBool && !run.seen[i * a.S + j]);
          sum += p[j] = hidden ? 0 : std::exp(score);
        }
        for (int64_t j = 0; j < a.S; ++j) {
          if (sum > 0) p[j] /= sum;
          const double factor = z[((n * a.H + h) * a.L + i) * a.S + j];
          dp[j] = 0;
          for (int64_t e = 0; e < a.EV; ++e) {
            y[yi + e] += p[j] * factor * v[value(j, e)];
            dp[j] += factor * dy[yi + e] * v[value(j, e)];
            dv[value(j, e)] += p[j] * factor * dy[yi + e];
          }
          delta += p[j] * dp[j];
        }
        for (int64_t j = 0; j < a.S; ++j)
          for (int64_t e = 0; e < a.E; ++e) {
            const double ds = p[j] * (dp[j] - delta) * scale;
            dq[qi + e] += ds * k[key(j, e)];
            dk[key(j, e)] += ds * q[qi + e];
          }
      }
  CHECK_CLOSE(run.y, y, tolerance, tolerance);
  CHECK_CLOSE(run.dq, dq, tolerance, tolerance);
  CHECK_CLOSE(run.dk, dk, tolerance, 4 * tolerance);
  CHECK_CLOSE(run.dv, dv, tolerance, 4 * tolerance);
}

TEST(attention_matches_its_definition) {
  const AttentionShape shapes[] = {{1, 1, 1, 1, 1, 1, 1},
                                   {2, 4, 2, 5, 7, 3, 9},
                                   {1, 2, 2, 33, 40, 16, 8},
                                   {1, 2, 1, 131, 261, 5, 6},
                                   {1, 1, 1, 20, 600, 5, 6}};
  for (Place place : kPlaces)
    for (const AttentionShape& shape : shapes)
      for (bool causal : {false, true})
        for (Masked mask : {Masked::kNo, Masked::kBool, Masked::kAdded})
          for (double p : {0.0, 0.3}) {
            Case c("S = " + std::to_string(shape.S) + ", mask " + std::to_string(static_cast<int>(mask)) +
                   ", causal " + std::to_string(causal) + ", p = " + std::to_string(p));
            check<float>({shape, causal, mask, p}, place, 2e-5);
            check<double>({shape, causal, mask, p}, place, 1e-6);  // factors are those of floats
          }
}

TEST(attention_is_the_same_for_any_thread_count) {
  for (const AttentionShape& shape : {AttentionShape{1, 1, 1, 400, 700, 16, 16}, {2, 6, 3, 150, 300, 8, 8}}) {
    const Setting s = {shape, true, Masked::kNo, 0.2};
    const Run<float> first(shape, Place::kEnd), again(shape, Place::kEnd);
    first(s, 0.3);
    each_thread_count([&] {
      again(s, 0.3);
      CHECK(again.y.same_bits(first.y) && again.lse.same_bits(first.lse) && again.dq.same_bits(first.dq) &&
            again.dk.same_bits(first.dk) && again.dv.same_bits(first.dv));
    });
  }
}

}  // namespace
