// How batch normalisation cuts its input, shared by forward and backward.
//
// Rows: [N, C, L], a channel is N rows of L elements. Columns: a matrix of which each column belongs to one
// channel, namely [N * L, C] (channels last) or [N, C * L], for rows too short to fill a register.
//
// A block is a piece of a channel's rows that fits in L1, or some rows of the matrix: one lane of a register
// then sums few numbers. Its size follows from the shape alone and sums of blocks are added in double, in
// order. So results depend neither on the number of threads nor on whether a thread takes a whole channel
// (its slab stays in L2 between the statistics and the output) or the blocks of all channels come first (few
// channels).
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/by_type.h"
#include "cpu/kernels/batchnorm.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "fastnn/batchnorm.h"

namespace fastnn::cpu {

struct BatchNormPlan {
  static constexpr int64_t kBlock = 2048;     // elements of a block of rows
  static constexpr int64_t kBlockRows = 128;  // rows of a block of columns
  static constexpr int64_t kColumns = 256;    // columns that one task takes
  static constexpr int64_t kShort = 16;       // rows below this length: the widest register's worth of floats
  static constexpr int64_t kWide = 64;        // narrower matrices are taken several rows at a time

  BatchNormShape shape;
  bool columns;
  int64_t pieces = 1;  // blocks that a row of L elements is cut into
  int64_t piece = 0;   // their length
  int64_t group = 1;   // or: rows that one block takes
  int64_t blocks = 0;  // per channel
  // The matrix of columns:
  int64_t rows = 0, width = 0;
  int64_t fold = 1;    // adjacent columns of one channel
  int64_t repeat = 1;  // rows that are taken as one where each element goes its own way

  explicit BatchNormPlan(const BatchNormShape& s) : shape(s), columns(s.channels_last || s.L < kShort) {
    if (columns) {
      rows = s.channels_last ? s.N * s.L : s.N;
      fold = s.channels_last ? 1 : s.L;
      width = s.C * fold;
      repeat = std::min(rows, (kWide + width - 1) / width);
      group = kBlockRows;
      blocks = (rows + group - 1) / group;
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
    if (columns) {
      const int64_t row = i * group;
      return {std::min(group, rows - row), 1, row, 0};
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
};

// Coefficients as the kernels read them: one per channel for rows, one per column and `repeat` times for
// columns.
template <class A>
class BatchNormCoefficients {
 public:
  BatchNormCoefficients(const BatchNormPlan& plan, int arrays)
      : plan_(plan),
        used_(plan.columns ? plan.width : plan.shape.C),
        size_(used_ * plan.repeat),
        arrays_(arrays),
        data_(size_ * arrays) {}
  void set(int array, int64_t c, double value) const {
    A* p = (*this)[array] + c * plan_.fold;
    for (int64_t k = 0; k < plan_.fold; ++k) p[k] = static_cast<A>(value);
  }
  // After the last set().
  void repeat() const {
    for (int array = 0; array < arrays_; ++array)
      for (int64_t i = used_; i < size_; ++i) (*this)[array][i] = (*this)[array][i - used_];
  }
  A* operator[](int array) const { return data_.data() + array * size_; }

 private:
  const BatchNormPlan& plan_;
  const int64_t used_, size_;
  const int arrays_;
  const Scratch<A> data_;
};

// f(first element, rows, first column, columns, place in [blocks, width]) over blocks: for sums down the
// columns.
template <class F>
void for_column_blocks(const BatchNormPlan& plan, const F& f) {
  constexpr int64_t kColumns = BatchNormPlan::kColumns;
  const int64_t parts = (plan.width + kColumns - 1) / kColumns;
  const int64_t visits = 2 * std::min(plan.group, plan.rows) * std::min(plan.width, kColumns);
  parallel_for(plan.blocks * parts, std::max<int64_t>(1, kGrain / visits), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const BatchNormPlan::Block b = plan.block(k / parts);
      const int64_t column = k % parts * kColumns;
      f(b.row * plan.width + column, b.rows, column, std::min(plan.width - column, kColumns),
        k / parts * plan.width + column);
    }
  });
}

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
  return of_type<T>(batchnorm_kernels());
}

// For what is done element by element: f(first element, rows) over the N * C rows of [N, C, L], and
// f(first element, rows, their width) over the matrix of columns.
template <class F>
void for_rows(const BatchNormShape& s, const F& f) {
  parallel_for(s.N * s.C, std::max<int64_t>(1, kGrain / s.L), [&](int64_t begin, int64_t end) {
    f(begin * s.L, BatchNormRows{end - begin, s.L, s.L, begin % s.C, 1, s.C});
  });
}
template <class F>
void for_columns(const BatchNormPlan& plan, const F& f) {
  const int64_t wide = plan.width * plan.repeat, whole = plan.rows / plan.repeat,
                rest = plan.rows % plan.repeat;
  parallel_for(whole, std::max<int64_t>(1, kGrain / wide),
               [&](int64_t begin, int64_t end) { f(begin * wide, end - begin, wide); });
  if (rest > 0) f(whole * wide, 1, rest * plan.width);
}

}  // namespace fastnn::cpu
