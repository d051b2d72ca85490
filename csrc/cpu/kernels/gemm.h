// The matrix kernels of one instruction set: what csrc/cpu/gemm.cpp plans and these carry out.
#pragma once
#include <cstdint>

#include "cpu/capability.h"

namespace fastnn::cpu {

// C[m x n] = or += A B over k steps. The m rows are cut into `panels` panels of nearly equal height,
// the n columns into panels of GemmTile::nr; a tile of C is one panel of rows by one of columns.
template <class T>
struct GemmBlock {
  int64_t m = 0, n = 0, k = 0;
  int64_t panels = 0;    // panel i is the rows [m * i / panels, m * (i + 1) / panels)
  const T* a = nullptr;  // element (i, p) at a[i * a_row + p * a_col]
  int64_t a_row = 0, a_col = 0;
  T* a_pack = nullptr;    // null: read A in place. Else a panel is [k][its rows]:
  bool a_packed = false;  // all panels, one after the other, are there; otherwise room for a_room
  int64_t a_room = 1;     // panels that are packed at a time
  const T* b = nullptr;   // element (p, j) at b[p * b_row + j * b_col]
  int64_t b_row = 0, b_col = 0;
  T* b_pack =
      nullptr;     // null: read B in place, b_col == 1. Else [k * n] to be filled, panels of [k][columns]
  T* c = nullptr;  // element (i, j) at c[i * c_row + j]
  int64_t c_row = 0;
  bool accumulate = false;      // add to C
  const T* bias_row = nullptr;  // [m] or null; not with accumulate
  const T* bias_col = nullptr;  // [n] or null; not with accumulate
};

struct GemmTile {
  int mr, nr;   // most rows, and columns, of a tile
  int vec;      // lanes of a register
  int k_block;  // steps after which sums go back to C
};

template <class T>
struct GemmTypeKernels {
  GemmTile tile;
  void (*block)(const GemmBlock<T>&);
  void (*pack_a)(const GemmBlock<T>&);  // fills a_pack
  // a_col == 1 and b_row == 1: one vector of partial sums per element of C, nothing packed, all of k.
  void (*dot)(const GemmBlock<T>&);
};

struct GemmKernels {
  GemmTypeKernels<float> f32;
  GemmTypeKernels<double> f64;
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(GemmKernels, gemm)
