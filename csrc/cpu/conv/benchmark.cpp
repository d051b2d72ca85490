#include "cpu/conv/benchmark.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "cpu/capability.h"
#include "cpu/parallel.h"

namespace fastnn::cpu {
namespace {

constexpr int kRounds = 5;              // of all candidates in turn; the least time of each counts
constexpr double kSeconds = 0.2;        // no further round after that
constexpr double kRoundSeconds = 1e-3;  // short runs are repeated for so long within a round
constexpr size_t kMost = 4096;          // measurements that are kept

bool enabled_at_start() {
  const char* value = std::getenv("FASTNN_CONV_BENCHMARK");
  return value != nullptr && std::strcmp(value, "") != 0 && std::strcmp(value, "0") != 0;
}
std::atomic<bool> enabled{enabled_at_start()};

// What a measurement holds for. Names are string constants, so their addresses tell candidates apart.
using Key = std::pair<std::vector<int64_t>, std::vector<const char*>>;

Key key_of(ConvDirection direction, const ConvGeometry& p, const std::vector<const char*>& names) {
  std::vector<int64_t> numbers{static_cast<int64_t>(direction),
                               thread_limit(),
                               static_cast<int64_t>(capability()),
                               static_cast<int64_t>(p.dtype),
                               p.channels_last,
                               p.n,
                               p.c,
                               p.k,
                               p.g};
  for (const auto* dims : {&p.in, &p.kernel, &p.stride, &p.padding, &p.dilation, &p.out})
    numbers.insert(numbers.end(), *dims, *dims + 3);
  return {std::move(numbers), names};
}

std::mutex mutex;  // of `measurements`
std::map<Key, ConvMeasurement> measurements;
// One measurement at a time, so that they do not disturb each other. A candidate may be a convolution of
// another layout, with candidates of its own.
std::recursive_mutex measuring;

bool find(const Key& key, size_t& fastest) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = measurements.find(key);
  if (found == measurements.end()) return false;
  fastest = found->second.fastest;
  return true;
}

template <class F>
double seconds(const F& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<double> measure(size_t count, const std::function<void(size_t)>& run) {
  std::vector<double> least(count, std::numeric_limits<double>::infinity());
  for (size_t i = 0; i < count; ++i) run(i);  // fresh pages, and what is measured inside
  double total = 0;
  for (int round = 0; round < kRounds && total < kSeconds; ++round) {
    for (size_t i = 0; i < count; ++i) {
      for (double spent = 0; spent < kRoundSeconds;) {
        const double once = seconds([&] { run(i); });
        least[i] = std::min(least[i], once);
        spent += once;
        total += once;
      }
    }
  }
  return least;
}

}  // namespace

bool conv_benchmark_enabled() {
  return enabled.load(std::memory_order_relaxed);
}
void set_conv_benchmark_enabled(bool on) {
  enabled.store(on, std::memory_order_relaxed);
}

size_t fastest_conv(ConvDirection direction, const ConvGeometry& p, const std::vector<const char*>& names,
                    const std::function<void(size_t)>& run) {
  const Key key = key_of(direction, p, names);
  size_t fastest = 0;
  if (find(key, fastest)) return fastest;
  const std::lock_guard<std::recursive_mutex> one(measuring);
  if (find(key, fastest)) return fastest;
  ConvMeasurement m{direction, p, thread_limit(), name(capability()), names, {}, 0};
  if (names.size() > 1) {
    m.seconds = measure(names.size(), run);
    m.fastest = std::min_element(m.seconds.begin(), m.seconds.end()) - m.seconds.begin();
  }
  const std::lock_guard<std::mutex> lock(mutex);
  if (measurements.size() >= kMost) measurements.clear();
  measurements.emplace(key, m);
  return m.fastest;
}

std::vector<ConvMeasurement> conv_measurements() {
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<ConvMeasurement> all;
  for (const auto& [key, measurement] : measurements) all.push_back(measurement);
  return all;
}

void forget_conv_measurements() {
  const std::lock_guard<std::mutex> lock(mutex);
  measurements.clear();
}

}  // namespace fastnn::cpu
