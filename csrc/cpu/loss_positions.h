// How the losses of classes share work: whole rows, or strips of columns, go to threads; a position never
// crosses threads.
#pragma once
#include "cpu/parallel.h"

namespace fastnn::cpu {

constexpr int kLogitCost = 4;     // in units of a copy's: an exponential and two passes
constexpr int64_t kColumns = 64;  // of one strip: as few as keep the steps from class to class in full lines

// rows(p, begin, end) or columns(p, n, begin, end) over all positions of p.
template <class Params, class Rows, class Columns>
void each_position(const Params& p, const Rows& rows, const Columns& columns) {
  const int64_t width = p.inner == 1 ? 1 : std::min(p.inner, kColumns);
  const int64_t grain = std::max<int64_t>(1, kGrain / kLogitCost / std::max<int64_t>(1, p.C * width));
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

}  // namespace fastnn::cpu
