// Random numbers by position, whichever thread draws them. So (seed, offset) is all that a backward keeps of
// what was drawn.
//
// Word i of a stream is word i % 4 of Philox4x32-7 with counter (i / 4, offset) and key seed. Seven rounds
// are the fewest that pass TestU01's BigCrush (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy
// as 1, 2, 3, SC 2011, table 2).
//
// Decision i, true with the probability threshold / 2^32, takes half a word: of 64 decisions in a row the
// first 32 take the lower halves of 32 words in a row, the others the upper ones. It is half-word < upper
// half of the threshold. Where the two are equal, once in 65536, the half-word at the same place of the
// stream whose offset has its top bit flipped decides, half-word < lower half of the threshold.
#pragma once
#include <cstdint>

namespace fastnn {

struct PhiloxStream {
  uint64_t seed, offset;
};

constexpr int kPhiloxRounds = 7;
// Decisions in a row that are made together; ranges that begin at a multiple of this cost least, and those of
// words must.
constexpr int64_t kPhiloxBatch = 64;

}  // namespace fastnn
