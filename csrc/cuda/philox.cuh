// Philox4x32-7 and the decisions of fastnn/philox.h, four words at a time: bit for bit the CPU's draws.
#pragma once
#include "cuda/common.cuh"
#include "fastnn/philox.h"

namespace fastnn::cuda {

struct Words {
  uint32_t v[4];
};

// Words 4 * counter ... 4 * counter + 3 of the stream.
__device__ __forceinline__ Words philox(uint64_t counter, PhiloxStream s) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = static_cast<uint32_t>(s.offset), c3 = static_cast<uint32_t>(s.offset >> 32);
  uint32_t k0 = static_cast<uint32_t>(s.seed), k1 = static_cast<uint32_t>(s.seed >> 32);
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = uint64_t{c0} * 0xD2511F53u, p1 = uint64_t{c2} * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Four counters' worth of a batch: bit j tells of the decision that takes the lower half of word j, bit 4 + j
// of the one that takes its upper half, 32 decisions further.
__device__ __forceinline__ unsigned decide(uint64_t counter, PhiloxStream s, uint32_t threshold) {
  const uint32_t upper = threshold >> 16, lower = threshold & 0xffff;
  const Words words = philox(counter, s);
  unsigned drop = 0, ties = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t low = words.v[j] & 0xffff, high = words.v[j] >> 16;
    drop |= (low < upper ? 1u : 0u) << j | (high < upper ? 1u : 0u) << (4 + j);
    ties |= (low == upper ? 1u : 0u) << j | (high == upper ? 1u : 0u) << (4 + j);
  }
  if (ties != 0) {  // one word in 32768
    const Words more = philox(counter, {s.seed, s.offset ^ uint64_t{1} << 63});
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      drop |= ((more.v[j] & 0xffff) < lower ? ties : 0u) & 1u << j;
      drop |= ((more.v[j] >> 16) < lower ? ties : 0u) & 16u << j;
    }
  }
  return drop;
}

// Decision i alone.
__device__ __forceinline__ bool decision(int64_t i, PhiloxStream s, uint32_t threshold) {
  const int64_t batch = i / kPhiloxBatch;
  const int within = static_cast<int>(i % kPhiloxBatch), word = within % 32;
  const unsigned drop = decide(static_cast<uint64_t>(batch) * 8 + word / 4, s, threshold);
  return (drop >> (word % 4 + within / 32 * 4) & 1) != 0;
}

// The stream itself, or the one that lies in device memory when a captured graph runs.
__device__ __forceinline__ PhiloxStream resolve(PhiloxStream s, const uint64_t* on_device) {
  return on_device == nullptr ? s : PhiloxStream{on_device[0], on_device[1]};
}

}  // namespace fastnn::cuda
