// Losses of single elements, split over threads; a sum is one of pieces of fixed size.
#include "fastnn/loss_pointwise.h"

#include <vector>

#include "cpu/kernels/loss_pointwise.h"
#include "cpu/parallel.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kPiece = 4096;  // short enough that float sums of a register's lanes keep their digits

int64_t cost(PointwiseLoss kind) {
  return kind == PointwiseLoss::kSquared ? 1 : 4;
}

}  // namespace

double pointwise_loss_forward(const PointwiseLossParams& p) {
  const auto& kernels = loss_pointwise_kernels();
  const int64_t grain = kGrain / cost(p.kind);
  if (p.y != nullptr) {
    parallel_for(p.count, grain, [&](int64_t begin, int64_t end) { kernels.values(p, begin, end); });
    return 0;
  }
  const int64_t pieces = (p.count + kPiece - 1) / kPiece;
  std::vector<double> sums(pieces);
  parallel_for(pieces, std::max<int64_t>(1, grain / kPiece), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      sums[i] = kernels.sum(p, i * kPiece, std::min(p.count, (i + 1) * kPiece));
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

void pointwise_loss_backward(const PointwiseLossBackwardParams& p) {
  parallel_for(p.count, kGrain / cost(p.kind),
               [&](int64_t begin, int64_t end) { loss_pointwise_kernels().backward(p, begin, end); });
}

}  // namespace fastnn::cpu
