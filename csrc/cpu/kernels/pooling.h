// Tables of the pooling kernels, and how their work is cut into units.
#pragma once
#include "cpu/capability.h"
#include "cpu/pooling/geometry.h"
#include "fastnn/pooling.h"

namespace fastnn::cpu {

// A unit of work: one plane (image and channel; channels_last: one image), one position along D, a block
// of rows and a block of columns; of the output in a forward pass, of the input in a backward pass.
// Column blocks vary slowest, because what a kernel prepares depends on them alone.
struct PoolBlocks {
  int64_t planes = 0, depth = 0;
  int64_t rows = 0, row_blocks = 0;  // rows in a block, blocks
  int64_t cols = 0, col_blocks = 0;
  int64_t units() const { return planes * depth * row_blocks * col_blocks; }
};

// Each kernel runs the units [begin, end). `scratch` is the calling thread's, of the size that the
// driver computes with the functions below.
struct MaxPoolKernels {
  void (*forward_rows)(const MaxPoolParams&, const PoolBlocks&, int64_t begin, int64_t end, char* scratch);
  void (*forward_lines)(const MaxPoolParams&, const PoolBlocks&, int64_t begin, int64_t end, char* scratch);
  void (*forward_channels_last)(const MaxPoolParams&, const PoolBlocks&, int64_t begin, int64_t end, char*);
  void (*backward_rows)(const MaxPoolBackwardParams&, const PoolBlocks&, int64_t begin, int64_t end, char*);
  void (*backward_scatter)(const MaxPoolBackwardParams&, int64_t begin, int64_t end,
                           char* scratch);  // planes
  void (*backward_channels_last)(const MaxPoolBackwardParams&, const PoolBlocks&, int64_t, int64_t, char*);
};
struct AvgPoolKernels {
  void (*forward_rows)(const AvgPoolParams&, const PoolBlocks&, int64_t begin, int64_t end, char* scratch);
  void (*forward_lines)(const AvgPoolParams&, const PoolBlocks&, int64_t begin, int64_t end, char* scratch);
  void (*forward_channels_last)(const AvgPoolParams&, const PoolBlocks&, int64_t begin, int64_t end, char*);
  void (*forward_plane)(const AvgPoolParams&, int64_t begin, int64_t end);  // planes
  void (*backward_plane)(const AvgPoolBackwardParams&, int64_t begin, int64_t end);
  void (*backward_rows)(const AvgPoolBackwardParams&, const PoolBlocks&, int64_t begin, int64_t end, char*);
  void (*backward_channels_last)(const AvgPoolBackwardParams&, const PoolBlocks&, int64_t, int64_t, char*);
};

// NCHW, windows that neither overlap nor are cut short, along W of stride 1 or 2; forward: 2 columns,
// stride 2. At most 256 taps. No scratch.
struct DisjointPoolKernels {
  void (*max_forward)(const MaxPoolParams&, const PoolBlocks&, int64_t begin, int64_t end, char*);
  void (*max_backward)(const MaxPoolBackwardParams&, const PoolBlocks&, int64_t begin, int64_t end, char*);
  void (*avg_forward)(const AvgPoolParams&, const PoolBlocks&, int64_t begin, int64_t end, char*);
  void (*avg_backward)(const AvgPoolBackwardParams&, const PoolBlocks&, int64_t begin, int64_t end, char*);
};

// Every shape and layout, one element at a time, planes [begin, end) (image and channel).
struct PoolReferenceKernels {
  void (*max_forward)(const MaxPoolParams&, int64_t begin, int64_t end);
  void (*max_backward)(const MaxPoolBackwardParams&, int64_t begin, int64_t end);
  void (*avg_forward)(const AvgPoolParams&, int64_t begin, int64_t end);
  void (*avg_backward)(const AvgPoolBackwardParams&, int64_t begin, int64_t end);
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(DisjointPoolKernels, disjoint_pool)
FASTNN_DECLARE_KERNELS(PoolReferenceKernels, pool_reference)
FASTNN_DECLARE_KERNELS(MaxPoolKernels, max_pool)
FASTNN_DECLARE_KERNELS(AvgPoolKernels, avg_pool)

namespace {

using fastnn::PoolShape;
using fastnn::cpu::PoolBlocks;

struct PoolUnit {
  int64_t col_block, plane, d, row_begin, row_end, col_begin, col_end;
};

inline PoolUnit pool_unit(const PoolBlocks& b, int64_t unit, int64_t rows, int64_t cols) {
  PoolUnit u;
  const int64_t row_block = floor_mod(unit, b.row_blocks);
  unit = floor_div(unit, b.row_blocks);
  u.d = floor_mod(unit, b.depth);
  unit = floor_div(unit, b.depth);
  u.col_block = b.col_blocks == 1 ? 0 : unit / b.planes;
  u.plane = unit - u.col_block * b.planes;
  u.row_begin = row_block * b.rows;
  u.row_end = smaller(u.row_begin + b.rows, rows);
  u.col_begin = u.col_block * b.cols;
  u.col_end = smaller(u.col_begin + b.cols, cols);
  return u;
}

// A tap along W as (residue, shift): window o reads column (o + shift) * stride + residue. With the columns
// of one residue next to each other, every tap of neighbouring windows is a contiguous load, for any stride.
struct ColumnTap {
  int64_t residue, shift;
};
inline ColumnTap column_tap(const PoolShape& s, int64_t kw) {
  const int64_t at = kw * s.dilation[2] - s.padding[2], shift = floor_div(at, s.stride[2]);
  return {at - shift * s.stride[2], shift};
}

constexpr int64_t kSlack = 64;  // numbers that a vector may read or write behind the end of a line

// Takes pieces of the scratch one after the other; with a null base it only measures.
struct PoolScratch {
  explicit PoolScratch(char* base) : start(reinterpret_cast<uintptr_t>(base)), at(start) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(at);
    at += (static_cast<uintptr_t>(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  int64_t bytes() const { return static_cast<int64_t>(at - start); }
  uintptr_t start, at;
};

// An integer as wide as the number it accompanies.
template <class C>
struct CodeOf {
  using type = int32_t;
};
template <>
struct CodeOf<double> {
  using type = int64_t;
};

// Rows of x in de-interleaved form, [slot][residue][position], ready for the taps along W.
template <class C>
struct ForwardLines {
  int64_t min_shift, span, length, extent, slots;
  C *stage, *line, *counts, *divisors;
  C** taps;
  int32_t* tap_codes;
  int64_t* tap_offsets;  // of each kw, in the staged row
  const void** rows;
  int64_t* held;  // which row a slot holds
  ForwardLines(const PoolShape& s, const PoolBlocks& b, bool every_row, PoolScratch& scratch) {
    min_shift = column_tap(s, 0).shift;
    span = column_tap(s, s.kernel[2] - 1).shift - min_shift;
    length = b.cols + span + kSlack;
    extent = (s.kernel[1] - 1) * s.dilation[1] + 1;
    slots = every_row ? s.kernel[0] * extent : 1;
    stage = scratch.take<C>(slots * s.stride[2] * length);
    line = scratch.take<C>(length * s.stride[2]);
    counts = scratch.take<C>(b.cols + kSlack);
    divisors = scratch.take<C>(b.cols + kSlack);
    taps = scratch.take<C*>(tap_count(s));
    tap_codes = scratch.take<int32_t>(tap_count(s));
    tap_offsets = scratch.take<int64_t>(s.kernel[2]);
    rows = scratch.take<const void*>(s.kernel[0] * s.kernel[1]);
    held = scratch.take<int64_t>(slots);
  }
};

// Rows of dy padded on both sides, [slot][position]: position i is output column first_group - max_shift + i.
// Columns of dx are counted in groups of `stride`: column q * stride + r is column r of group q, and the taps
// of residue r are its only ones. A slot holds one row of dy for as long as rows of dx need it.
template <class C>
struct BackwardLines {
  int64_t min_shift, max_shift, length, overlap_d, overlap_h, slots, width;
  C *stage, *line, *spread, *counts;
  typename CodeOf<C>::type* codes;
  int64_t *held, *residue_begin, *residue_taps, *tap_offsets;
  BackwardLines(const PoolShape& s, const PoolBlocks& b, bool adaptive, PoolScratch& scratch) {
    const int64_t stride = adaptive ? 1 : s.stride[2];
    min_shift = adaptive ? 0 : column_tap(s, 0).shift;
    max_shift = adaptive ? 0 : column_tap(s, s.kernel[2] - 1).shift;
    length = larger(b.cols, adaptive ? s.out[2] : 0) + max_shift - min_shift + kSlack;
    overlap_d = pool_overlap(s, 0);
    overlap_h = pool_overlap(s, 1);
    slots = overlap_d * overlap_h;
    width = b.cols * stride + kSlack;
    stage = scratch.take<C>(slots * length);
    codes = scratch.take<typename CodeOf<C>::type>(slots * length);
    spread = scratch.take<C>(slots * width);
    line = scratch.take<C>(stride * length);
    counts = scratch.take<C>(length);
    held = scratch.take<int64_t>(slots);
    residue_begin = scratch.take<int64_t>(stride + 1);
    residue_taps = scratch.take<int64_t>(s.kernel[2]);
    tap_offsets = scratch.take<int64_t>(s.kernel[2]);  // offset() of each of residue_taps
  }
  // Where in a line the windows stand whose tap kw falls on the first group.
  int64_t offset(const PoolShape& s, int64_t kw) const { return max_shift - column_tap(s, kw).shift; }
  // Sorts the taps along W by residue, the last first: the order of their outputs.
  void sort_taps(const PoolShape& s) const {
    int64_t n = 0;
    for (int64_t r = 0; r < s.stride[2]; ++r) {
      residue_begin[r] = n;
      for (int64_t kw = s.kernel[2] - 1; kw >= 0; --kw)
        if (column_tap(s, kw).residue == r) tap_offsets[n] = offset(s, kw), residue_taps[n++] = kw;
    }
    residue_begin[s.stride[2]] = n;
  }
  // The outputs that a block of groups needs.
  PoolRange outputs(const PoolShape& s, const PoolUnit& u) const {
    const int64_t begin = larger(0, u.col_begin - max_shift);
    return {begin, larger(begin, smaller(s.out[2], u.col_end - min_shift))};
  }
  int64_t slot(int64_t od, int64_t oh) const {
    return floor_mod(od, overlap_d) * overlap_h + floor_mod(oh, overlap_h);
  }
};

}  // namespace
