// Parallel loops over elements that each take a random number.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/parallel.h"
#include "fastnn/philox.h"

namespace fastnn::cpu {

// f(first, last) over ranges of [0, n) that begin at whole batches; each number serves `length` elements.
template <class F>
void parallel_draws(int64_t n, int64_t length, const F& f) {
  constexpr int64_t kVisits = 3;  // drawing a number costs up to two more visits of an element
  const int64_t batches = (n + kPhiloxBatch - 1) / kPhiloxBatch;
  const int64_t batch_visits = kVisits * kPhiloxBatch * length;
  parallel_for(batches, std::max<int64_t>(1, kGrain / batch_visits),
               [&](int64_t begin, int64_t end) { f(begin * kPhiloxBatch, std::min(end * kPhiloxBatch, n)); });
}

}  // namespace fastnn::cpu
