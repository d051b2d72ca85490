// How threads share a recurrent layer: one parallel region over all steps, in which each thread owns a
// direction, some sequences and some units.
//
// Directions and sequences are independent. Threads that share sequences take a share of the units each, so
// that their part of the weights stays in their cache, and meet after each step.
#pragma once
#include <atomic>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace fastnn::cpu {

// Threads of one group meet here once a step. They spin, since a step takes microseconds, and step aside when
// one of them seems not to run.
class alignas(64) Meeting {
 public:
  void wait(int64_t members) {
    if (members == 1) return;
    const int64_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == members - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 256;  // some 10 us where a pause takes 140 cycles: a step
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  std::atomic<int64_t> arrived_{0}, phase_{0};
};

// One thread's share: directions [first, last), the sequences `sequence + i * sequences`, part `part` of
// `parts` of the units.
struct RnnWorker {
  int64_t first_direction, last_direction;
  int64_t sequence, sequences;
  int64_t part, parts;
  Meeting* meeting;

  // How many of the first n sequences are its own.
  int64_t count(int64_t n) const { return n <= sequence ? 0 : (n - sequence - 1) / sequences + 1; }
  void meet() const { meeting->wait(parts); }
};

struct RnnWork {
  int64_t directions, sequences, steps;
  int64_t registers;     // of units
  int64_t weight_bytes;  // that each step of a direction reads
  int64_t multiplies;    // of a direction, all steps

  struct Grid {
    int64_t directions, sequences, units;
  };
  Grid grid(int64_t threads) const {
    // Multiply-adds that are worth waking a thread for, as in gemm.cpp, and those that are worth a meeting.
    constexpr int64_t kThreadWork = 1 << 17, kStepWork = 1 << 15;
    // Fewer rows use the weights too seldom; half of the smallest usual L2.
    constexpr int64_t kRows = 6, kCacheBytes = 1 << 20;
    const auto share = [](int64_t most, int64_t wanted) {
      return std::max<int64_t>(1, std::min(most, wanted));
    };
    threads = share(threads, directions * multiplies / kThreadWork);
    Grid g{share(directions, threads), 1, 1};
    const int64_t group = threads / g.directions;
    const int64_t most_units = share(registers, multiplies / steps / kStepWork);
    g.units = share(std::min(group, most_units), (weight_bytes + kCacheBytes - 1) / kCacheBytes);
    g.sequences = share(group / g.units, sequences / kRows);
    g.units = share(group / g.sequences, most_units);
    return g;
  }
};

// f(worker) for each of the threads that are worth it.
template <class F>
void run_team(const RnnWork& work, const F& f) {
  const auto alone = [&] {
    Meeting nobody;
    f(RnnWorker{0, work.directions, 0, 1, 0, 1, &nobody});
  };
  const int64_t limit = thread_limit();
  const auto size = [](const RnnWork::Grid& g) { return g.directions * g.sequences * g.units; };
  if (limit == 1 || size(work.grid(limit)) == 1) return alone();
  std::vector<Meeting> meetings(limit);
#pragma omp parallel
  {
    // The team may be smaller than asked for.
    const RnnWork::Grid grid = work.grid(std::min<int64_t>(omp_get_num_threads(), limit));
    const int64_t id = omp_get_thread_num();
    if (id < size(grid)) {
      const int64_t group = id / grid.units, direction = group / grid.sequences;
      f(RnnWorker{work.directions * direction / grid.directions,
                  work.directions * (direction + 1) / grid.directions, group % grid.sequences, grid.sequences,
                  id % grid.units, grid.units, &meetings[group]});
    }
  }
}

}  // namespace fastnn::cpu
