// Random words by position: word i of a stream is word i % 4 of Philox4x32-10 with counter (i / 4, offset)
// and key seed, whichever thread draws it. So (seed, offset) is all that a backward keeps of what was drawn.
#pragma once
#include <cstdint>

namespace fastnn {

struct PhiloxStream {
  uint64_t seed, offset;
};

// Words per batch of counters; a range of indices that a thread starts must begin at a multiple.
constexpr int64_t kPhiloxBatch = 32;

}  // namespace fastnn
