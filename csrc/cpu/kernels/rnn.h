// The inner loops of recurrent layers: a few rows times a packed matrix, and what a cell makes of the sums
// while they are in L1.
#pragma once
#include <cstdint>

#include "cpu/capability.h"
#include "fastnn/rnn.h"

namespace fastnn::cpu {

// A matrix W[k, columns] as products read it: registers side by side of the columns of one block of units,
// one block of each gate after the other; a register's k steps lie one after the other. Columns beyond H are
// 0.
template <class T>
struct RnnPacking {
  const T* w = nullptr;  // element (p, gate g, unit j) at w[p * row + (g * H + j) * column]
  int64_t row = 0, column = 0;
  int64_t k = 0, H = 0, gates = 1;
  int64_t first = 0, last = 0;  // registers to be filled, of gates * ceil(H / lanes)
  T* packed = nullptr;          // [gates * ceil(H / lanes)] of rnn_register_stride(k, lanes)
};
// One register's steps, and a cache line that keeps the streams from meeting in the same sets of a cache.
constexpr int64_t rnn_register_stride(int64_t k, int64_t lanes) {
  return (k + 1) * lanes;
}

// Rows of A times W.
template <class T>
struct RnnProduct {
  const T* a =
      nullptr;  // element (n, p) at a[n * a_row + p], plus a_gap from p = a_split on; null: all sums are 0
  int64_t a_row = 0;
  int64_t a_split = 0, a_gap = 0;  // a_split == k: no gap
  int64_t k = 0;
  const T* packed = nullptr;
};

// A matrix of which row n belongs to the n-th of the call's sequences; null where it is optional.
template <class T>
struct RnnRows {
  T* data = nullptr;
  int64_t row = 0;
};

// Units [first, last), counted in registers, of `rows` sequences in one step.
template <class T>
struct RnnPart {
  int64_t rows = 0, first = 0, last = 0;
  int64_t H = 0;
};

// y = A W + add + more.
template <class T>
struct RnnMultiply {
  RnnPart<T> part;
  RnnProduct<T> product;
  RnnRows<const T> add, more;  // or null
  RnnRows<T> y;
};

// A step forward: the product is with h of the step before.
template <class T>
struct RnnForward {
  RnnPart<T> part;
  RnnProduct<T> product;
  RnnRows<T> gates;         // W_ih x + biases, overwritten with what backward needs
  RnnRows<const T> h, c;    // of the step before, or null: zeros. h: kGru
  const T* b_hn = nullptr;  // [H] or null; kGru
  RnnRows<T> y;             // kTanh, kRelu: those of `gates`
};

// A step backward: the product is with the slopes of the step after (or, with a projection, with the gradient
// of the projected output), and gives the gradient of this step's h.
template <class T>
struct RnnBackward {
  RnnPart<T> part;
  RnnProduct<T> product;
  RnnRows<const T> add, more;  // to the product, or null
  RnnRows<const T> kept;       // of this step; kTanh, kRelu: y
  RnnRows<const T> h, c;       // of the step before, or null: zeros
  RnnRows<T> dc;               // gradient of c, of this step and then of the one before; kLstm
  RnnRows<T> dh;               // out: what reaches h of the step before past the gates; kGru
  RnnRows<T> slopes;           // out
  RnnRows<T> hidden;           // out: o tanh(c); kLstm with a projection, or null
};

template <class T>
struct RnnOps {
  int lanes;
  void (*pack)(const RnnPacking<T>&);
  // y[j * rows + i] = x[i * row + j], i < rows, j < columns.
  void (*transpose)(const T* x, int64_t row, int64_t columns, int64_t rows, T* y);
  void (*multiply)(const RnnMultiply<T>&);
  void (*forward[4])(const RnnForward<T>&);  // by cell
  void (*backward[4])(const RnnBackward<T>&);
};

struct RnnKernels {
  RnnOps<float> float32;
  RnnOps<double> float64;
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(RnnKernels, rnn)
