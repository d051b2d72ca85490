// Sums of losses: ranges of fixed size, at most kMostParts, then one block; in double and in order, so the
// bits are the same in every run.
#pragma once
#include "cuda/loss.h"
#include "cuda/reduce.cuh"

namespace fastnn::cuda {

constexpr int kLossThreads = 256;
constexpr int kMostParts = kLossWorkspace / 2;
constexpr int64_t kPartLength = 4096;

// One block. divisor 0: the sum of weights.
template <class T>
__global__ void __launch_bounds__(kLossThreads, kTwoBlocks)
    finish_sum(const Two<double>* parts, int count, double divisor, T* loss, double* used_divisor) {
  Two<double> sums = {0, 0};
  for (int i = threadIdx.x; i < count; i += kLossThreads) sums = SumTwo()(sums, parts[i]);
  sums = group_reduce<kLossThreads>(sums, SumTwo());
  if (threadIdx.x != 0) return;
  const double by = divisor == 0 ? sums.b : divisor;
  *loss = store<T>(static_cast<Compute<T>>(sums.a / by));
  if (used_divisor != nullptr) *used_divisor = by;
}

inline int loss_parts(int64_t positions) {
  const int64_t parts = ceil_div(positions, kPartLength);
  return static_cast<int>(parts < kMostParts ? parts : kMostParts);
}

}  // namespace fastnn::cuda
