// Cross-entropy: whole rows, or strips of columns, are handed to threads; a position never crosses threads.
// The losses of the positions are added in double afterwards, in pieces of fixed size.
#include "fastnn/loss.h"

#include <vector>

#include "cpu/kernels/loss.h"
#include "cpu/parallel.h"

namespace fastnn::cpu {
namespace {

constexpr int kCost = 4;          // per logit, in units of a copy's: an exponential and two passes
constexpr int64_t kColumns = 64;  // of one strip: as few as keep the steps from class to class in full lines
constexpr int64_t kSumPiece = 16384;  // positions that are added up by one thread

template <class Params, class Rows, class Columns>
void each_position(const Params& p, const Rows& rows, const Columns& columns) {
  const int64_t width = p.inner == 1 ? 1 : std::min(p.inner, kColumns);
  const int64_t grain = std::max<int64_t>(1, kGrain / kCost / std::max<int64_t>(1, p.C * width));
  if (p.inner == 1) {
    parallel_for(p.N, grain, [&](int64_t begin, int64_t end) { rows(p, begin, end); });
    return;
  }
  const int64_t strips = (p.inner + kColumns - 1) / kColumns;
  parallel_for(p.N * strips, grain, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t begin = item % strips * kColumns;
      columns(p, item / strips, begin, std::min(p.inner, begin + kColumns));
    }
  });
}

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

}  // namespace fastnn::cpu
