// Parallel loops on torch's own OpenMP team (libgomp.so.1), without torch headers.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstdint>

#ifndef _OPENMP
#error "fastnn's CPU kernels need OpenMP: without it they would run on one thread, silently"
#endif

namespace fastnn::cpu {

// Work below this many "element visits" stays on the calling thread: waking the team costs about
// 1-5 us, in which one core streams some 16k floats.
constexpr int64_t kGrain = 16384;

inline int thread_limit() {
  return omp_in_parallel() ? 1 : omp_get_max_threads();
}

// f(begin, end) over [0, n), split into one contiguous range per thread. `grain` is the smallest
// range that is worth a thread of its own. f must not depend on where the splits fall: a reduction
// splits its data by fixed sizes first and lets this loop hand out whole chunks.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  const int64_t useful = grain > 0 ? (n + grain - 1) / grain : n;
  if (useful <= 1 || thread_limit() == 1) {
    f(int64_t{0}, n);
    return;
  }
  // No num_threads clause: libgomp would rebuild its pool when the number changes.
#pragma omp parallel
  {
    const int64_t threads = std::min<int64_t>(omp_get_num_threads(), useful);
    const int64_t id = omp_get_thread_num();
    if (id < threads) {
      const int64_t begin = n * id / threads, end = n * (id + 1) / threads;
      if (begin < end) f(begin, end);
    }
  }
}

}  // namespace fastnn::cpu
