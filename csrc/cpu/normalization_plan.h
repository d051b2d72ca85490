// What layer and group norm share on the CPU: how a contiguous stretch (a row, the channels of a group) is
// cut into pieces that stay in L1 between two looks at them, its moments, and the three steps of every pass.
//
// Pieces follow from the shape alone and their sums are added in double, in order: results depend neither on
// the number of threads nor on whether one thread takes a whole stretch (it finds it in cache again) or the
// pieces of all stretches come first (few stretches).
#pragma once
#include <cmath>

#include "cpu/batchnorm_plan.h"
#include "cpu/by_type.h"
#include "cpu/kernels/normalization.h"
#include "fastnn/normalization.h"

namespace fastnn::cpu {

template <class T>
const NormalizationOps<T>& normalization_ops() {
  return of_type<T>(normalization_kernels());
}

struct Pieces {
  static constexpr int64_t kPiece = 2048;  // 8 KB of floats; a lane of AVX2 adds 256 of them

  int64_t length, count;
  explicit Pieces(int64_t length) : length(length), count((length + kPiece - 1) / kPiece) {}
  bool whole() const { return count == 1; }
  int64_t begin(int64_t i) const { return i * kPiece; }
  int64_t size(int64_t i) const { return std::min(kPiece, length - i * kPiece); }
};

// Mean and sum of squared differences from it (RMS norm: 0 and the sum of squares).
struct Moments {
  double mean, m2;
};

template <class T>
Moments piece_moments(const T* x, int64_t length, bool rms) {
  Moments m;
  normalization_ops<T>().moments(x, length, rms, &m.mean, &m.m2);
  return m;
}

// The moments of a whole from those of its parts; size(i): elements of part i.
template <class Size>
Moments merge(const Moments* parts, int64_t count, double n, const Size& size) {
  if (count == 1) return parts[0];
  Moments all = {0, 0};
  for (int64_t i = 0; i < count; ++i) all.mean += static_cast<double>(size(i)) * parts[i].mean;
  all.mean /= n;
  for (int64_t i = 0; i < count; ++i) {
    const double d = parts[i].mean - all.mean;
    all.m2 += parts[i].m2 + static_cast<double>(size(i)) * d * d;
  }
  return all;
}

// Stretches of one piece each: everything at once.
template <class T>
void forward_units(const NormUnits<T>& all) {
  parallel_for(all.units, std::max<int64_t>(1, kGrain / (3 * all.length)), [&](int64_t begin, int64_t end) {
    NormUnits<T> some = all;
    some.x += begin * all.length;
    some.y += begin * all.length;
    some.units = end - begin;
    some.group = begin % all.G;
    if (all.mean != nullptr) some.mean += begin;
    some.rstd += begin;
    if (all.var != nullptr) some.var += begin;
    normalization_ops<T>().forward(some);
  });
}

// For each of `units` independent stretches: measure(unit, part) of all parts, finish(unit), apply(unit,
// part) of all parts. `cost`: element visits of one part.
template <class Measure, class Finish, class Apply>
void in_three_steps(int64_t units, int64_t parts, int64_t cost, const Measure& measure, const Finish& finish,
                    const Apply& apply) {
  cost = std::max<int64_t>(1, cost);
  const int64_t threads = thread_limit(), all = units * parts;
  if (parts == 1 || units >= 4 * threads || units % threads == 0 || all * cost <= kGrain) {
    parallel_for(units, std::max<int64_t>(1, kGrain / (parts * cost)), [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        for (int64_t i = 0; i < parts; ++i) measure(u, i);
        finish(u);
        for (int64_t i = 0; i < parts; ++i) apply(u, i);
      }
    });
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kGrain / cost);
  parallel_for(all, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) measure(k / parts, k % parts);
  });
  for (int64_t u = 0; u < units; ++u) finish(u);
  parallel_for(all, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) apply(k / parts, k % parts);
  });
}

// Layer norm on [N, G, length] with parameters [G, length]: rows = N * G. `var`: [rows], or null, receives
// the variances.
void grouped_layer_forward(const LayerNormParams&, int64_t G, double* var);
void grouped_layer_backward(const LayerNormBackwardParams&, int64_t G);

}  // namespace fastnn::cpu
