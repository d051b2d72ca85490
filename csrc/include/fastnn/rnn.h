// One recurrent layer over a whole sequence, in one or both directions. float or double.
//
//   kTanh, kRelu  h' = f(W_ih x + b_ih + W_hh h + b_hh)
//   kLstm         i, f, o = sigmoid(..), g = tanh(..);  c' = f c + i g,  h' = W_hr (o tanh(c'))
//   kGru          r, z = sigmoid(..), n = tanh(W_in x + b_in + r (W_hn h + b_hn));  h' = n + z (h - n)
//
// A matrix with one row for each step of each sequence has its rows by steps: `first[t] + n` is step t of
// sequence n. Sequences are sorted by length: sequence n takes part in a step if n < active[t], and that
// never grows.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

enum class RnnCell : int { kTanh, kRelu, kLstm, kGru };

// Blocks of H numbers: gates of a row of the weights; what forward keeps of a row and step (kLstm: i f g o c,
// kGru: r z n and W_hn h + b_hn; else y is enough); gradients of a row and step in front of the gates (kGru:
// of r z n as W_ih sees them and of n as W_hh does).
struct RnnBlocks {
  int64_t gates, kept, slopes;
};
constexpr RnnBlocks rnn_blocks(RnnCell cell) {
  switch (cell) {
    case RnnCell::kLstm: return {4, 5, 4};
    case RnnCell::kGru: return {3, 4, 4};
    default: return {1, 0, 1};
  }
}

struct RnnShape {
  RnnCell cell = RnnCell::kTanh;
  int64_t D = 1;  // directions
  int64_t T = 0;  // steps
  int64_t N = 0;  // sequences
  int64_t C = 0;  // input features
  int64_t H = 0;  // hidden units
  int64_t P = 0;  // output features of a direction: H without projection
  bool projects = false;
  int64_t rows = 0;                 // over all steps
  const int64_t* active = nullptr;  // [T] sequences of each step, not growing; active[0] == N
  const int64_t* first = nullptr;   // [T] its first row
};

// G = rnn_blocks(cell).gates. All contiguous.
struct RnnWeights {
  const void* w_ih = nullptr;  // [G H, C], gates in torch's order
  const void* w_hh = nullptr;  // [G H, P]
  const void* b_ih = nullptr;  // [G H] or null
  const void* b_hh = nullptr;  // [G H] or null
  const void* w_hr = nullptr;  // [P, H] or null
};

struct RnnParams {
  DType dtype = DType::kFloat32;
  RnnShape shape;
  RnnWeights weights[2] = {};  // by direction
  const void* x = nullptr;     // [rows, C]
  const void* h0 = nullptr;    // [D, N, P] or null: zeros
  const void* c0 = nullptr;    // [D, N, H] or null: zeros; kLstm
  void* y = nullptr;           // [rows, D P]
  void* hy = nullptr;          // [D, N, P]
  void* cy = nullptr;          // [D, N, H]; kLstm
  void* kept = nullptr;        // [D, rows, kept H], or null: no backward will follow
};

// Null: not wanted.
struct RnnWeightGradients {
  void* w_ih = nullptr;
  void* w_hh = nullptr;
  void* b_ih = nullptr;
  void* b_hh = nullptr;
  void* w_hr = nullptr;
};

// Gradients that are not wanted are null, incoming ones that are zero too.
struct RnnBackwardParams {
  DType dtype = DType::kFloat32;
  RnnShape shape;
  RnnWeights weights[2] = {};
  const void* x = nullptr;     // [rows, C]
  const void* h0 = nullptr;    // [D, N, P] or null: zeros
  const void* c0 = nullptr;    // [D, N, H] or null: zeros; kLstm
  const void* y = nullptr;     // [rows, D P]
  const void* kept = nullptr;  // [D, rows, kept H]
  const void* dy = nullptr;    // [rows, D P]
  const void* dhy = nullptr;   // [D, N, P]
  const void* dcy = nullptr;   // [D, N, H]; kLstm
  void* dx = nullptr;          // [rows, C]
  void* dh0 = nullptr;         // [D, N, P]
  void* dc0 = nullptr;         // [D, N, H]; kLstm
  RnnWeightGradients gradients[2] = {};
};

namespace cpu {
void rnn_forward(const RnnParams&);
void rnn_backward(const RnnBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
