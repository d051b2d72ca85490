// Losses of classes, split over threads. Those of the positions are added in double afterwards, in pieces of
// fixed size.
#include "fastnn/loss.h"

#include <vector>

#include "cpu/kernels/loss.h"
#include "cpu/kernels/loss_nll.h"
#include "cpu/kernels/loss_soft.h"
#include "cpu/loss_positions.h"
#include "fastnn/loss_nll.h"
#include "fastnn/loss_soft.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kSumPiece = 16384;    // positions that are added up by one thread
constexpr int64_t kGatherGrain = 1024;  // positions that are worth a thread: each reads a line of its own

// The sum of f(position), which gives doubles.
template <class F>
double sum_in_pieces(int64_t positions, const F& f) {
  const int64_t pieces = (positions + kSumPiece - 1) / kSumPiece;
  std::vector<double> sums(pieces);
  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t end = std::min(positions, (piece + 1) * kSumPiece);
      for (int64_t i = piece * kSumPiece; i < end; ++i) sums[piece] += f(i);
    }
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

template <class F>
double with_compute_type(DType dtype, const F& f) {
  return dtype == DType::kFloat64 ? f(double{}) : f(float{});
}

}  // namespace

const int64_t* first_bad_target(const ClassTargets& t, int64_t positions, int64_t classes) {
  for (int64_t i = 0; i < positions; ++i) {
    if (t.index[i] != t.ignored && static_cast<uint64_t>(t.index[i]) >= static_cast<uint64_t>(classes))
      return t.index + i;
  }
  return nullptr;
}

double sum_of_losses(DType dtype, const void* loss, int64_t positions) {
  return with_compute_type(dtype, [&](auto element) {
    const auto* losses = static_cast<const decltype(element)*>(loss);
    return sum_in_pieces(positions, [&](int64_t i) { return static_cast<double>(losses[i]); });
  });
}

double sum_of_weights(DType dtype, const ClassTargets& t, int64_t positions) {
  return with_compute_type(dtype, [&](auto element) {
    const auto* weights = static_cast<const decltype(element)*>(t.class_weight);
    return sum_in_pieces(positions, [&](int64_t i) {
      const double weight = t.index[i] == t.ignored ? 0 : weights ? weights[t.index[i]] : 1;
      return weight;
    });
  });
}

void cross_entropy_forward(const CrossEntropyParams& p) {
  each_position(p, loss_kernels().rows, loss_kernels().columns);
}

void cross_entropy_backward(const CrossEntropyBackwardParams& p) {
  each_position(p, loss_kernels().rows_backward, loss_kernels().columns_backward);
}

void soft_cross_entropy_forward(const SoftCrossEntropyParams& p) {
  each_position(p, loss_soft_kernels().rows, loss_soft_kernels().columns);
}

void soft_cross_entropy_backward(const SoftCrossEntropyBackwardParams& p) {
  each_position(p, loss_soft_kernels().rows_backward, loss_soft_kernels().columns_backward);
}

void nll_forward(const NllParams& p) {
  parallel_for(p.N * p.inner, kGatherGrain,
               [&](int64_t begin, int64_t end) { loss_nll_kernels().losses(p, begin, end); });
}

void nll_backward(const NllBackwardParams& p) {
  const auto& gradient = loss_nll_kernels().gradient;
  const auto rows = [&](const NllBackwardParams&, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) gradient(p, n, 0, 1);
  };
  each_position(p, rows, gradient);
}

}  // namespace fastnn::cpu
