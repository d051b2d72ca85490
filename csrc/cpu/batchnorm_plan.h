// How batch normalisation cuts its input, shared by forward and backward.
//
// A block is a piece of one channel's [N, L] (or of the N * L rows, channels last) that fits in L1 and in
// which one lane of a register sums few numbers. Its size follows from the shape alone; sums of blocks are
// added in double in block order: so results do not depend on the number of threads, nor on whether a
// thread takes a whole channel (its slab then stays in L2 between the statistics and the output) or the
// blocks of all channels are dealt out first (few channels).
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/kernels/batchnorm.h"
#include "cpu/parallel.h"
#include "fastnn/batchnorm.h"

namespace fastnn::cpu {

struct BatchNormPlan {
  static constexpr int64_t kBlock = 2048;     // elements of a block, [N, C, L]
  static constexpr int64_t kBlockRows = 128;  // rows of a block, channels last
  static constexpr int64_t kColumns = 256;    // columns that one task takes, channels last

  BatchNormShape shape;
  int64_t pieces = 1;  // blocks that a row of L elements is cut into
  int64_t piece = 0;   // their length
  int64_t group = 1;   // or: rows that one block takes
  int64_t blocks = 0;  // per channel

  explicit BatchNormPlan(const BatchNormShape& s) : shape(s) {
    if (s.channels_last) {
      group = kBlockRows;
      blocks = (s.N * s.L + group - 1) / group;
      return;
    }
    pieces = (s.L + kBlock - 1) / kBlock;
    piece = ((s.L + pieces - 1) / pieces + 63) / 64 * 64;
    pieces = (s.L + piece - 1) / piece;
    if (pieces == 1) {
      piece = s.L;
      group = std::max<int64_t>(1, kBlock / s.L);
    }
    blocks = (s.N + group - 1) / group * pieces;
  }

  int64_t per_channel() const { return shape.N * shape.L; }

  struct Block {
    int64_t rows, length, row, offset;  // `length` elements from `offset` on of `rows` rows from `row` on
    double count() const { return static_cast<double>(rows * length); }
  };
  Block block(int64_t i) const {
    if (shape.channels_last) {
      const int64_t row = i * group;
      return {std::min(group, per_channel() - row), 1, row, 0};
    }
    const int64_t row = i / pieces * group, offset = i % pieces * piece;
    return {std::min(group, shape.N - row), std::min(piece, shape.L - offset), row, offset};
  }
  int64_t start(int64_t c, const Block& b) const { return (b.row * shape.C + c) * shape.L + b.offset; }

  // One thread per channel, or blocks first? `visits` is how often an element is looked at.
  int64_t channel_grain(int64_t visits) const {
    return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, visits * per_channel()));
  }
  bool by_channel(int64_t visits) const {
    const int64_t threads = thread_limit();
    return shape.C >= 4 * threads || shape.C % threads == 0 || visits * per_channel() * shape.C <= kGrain;
  }
  // Channels last: tasks are (block of rows, kColumns columns).
  int64_t column_tasks() const { return (shape.C + kColumns - 1) / kColumns; }
};

// f(first channel, channels) over groups of channels whose doubles share a cache line.
template <class F>
void for_channel_groups(int64_t C, int64_t cost, const F& f) {
  constexpr int64_t kGroup = 8;
  const int64_t groups = (C + kGroup - 1) / kGroup;
  parallel_for(groups, std::max<int64_t>(1, kGrain / (kGroup * std::max<int64_t>(1, cost))),
               [&](int64_t begin, int64_t end) {
                 for (int64_t g = begin; g < end; ++g)
                   f(g * kGroup, static_cast<int>(std::min(kGroup, C - g * kGroup)));
               });
}

template <class T>
const BatchNormOps<T>& batchnorm_ops() {
  const BatchNormKernels& k = batchnorm_kernels();
  if constexpr (std::is_same_v<T, double>) {
    return k.float64;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return k.bfloat16;
  } else if constexpr (std::is_same_v<T, Float16>) {
    return k.float16;
  } else {
    return k.float32;
  }
}

// f(first row, rows, first channel) over the N * C planes of [N, C, L]: for what is done element by element.
template <class F>
void for_planes(const BatchNormShape& s, const F& f) {
  parallel_for(s.N * s.C, std::max<int64_t>(1, kGrain / s.L), [&](int64_t begin, int64_t end) {
    f(begin * s.L, BatchNormRows{end - begin, s.L, s.L, begin % s.C, 1, s.C});
  });
}
template <class F>
void for_rows(const BatchNormShape& s, const F& f) {
  parallel_for(s.N * s.L, std::max<int64_t>(1, kGrain / s.C),
               [&](int64_t begin, int64_t end) { f(begin * s.C, end - begin); });
}

}  // namespace fastnn::cpu
