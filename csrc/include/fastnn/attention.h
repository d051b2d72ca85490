// Scaled dot-product attention, y = dropout(softmax(scale q k^T + mask)) v: what the kernels need to know.
//
// Nothing of size L x S is kept: forward leaves lse = log(sum(exp(scores))) of each row, from which backward
// makes each tile of the probabilities again; a row that sees no key has y = 0 and lse = +inf. Element (n, h,
// i, j) is dropped by decision ((n H + h) L + i) S' + j of the stream (seed, offset), philox.h; S' is S
// rounded up to whole batches, so that each row begins with one.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"
#include "fastnn/philox.h"

namespace fastnn {

// H heads of queries share HK of keys and values, H / HK neighbours each.
struct AttentionShape {
  int64_t N = 0, H = 0, HK = 0;
  int64_t L = 0, S = 0;   // queries, keys
  int64_t E = 0, EV = 0;  // of queries and keys, of values
};

// A tensor [batch, heads, positions, features] with features side by side.
struct AttentionView {
  void* data = nullptr;
  int64_t n = 0, h = 0, l = 0;  // strides, in elements
};

struct AttentionInputs {
  DType dtype = DType::kFloat32;  // kFloat32 or kFloat64
  AttentionShape shape;
  AttentionView q;  // [N, H, L, E]
  AttentionView k;  // [N, HK, S, E]
  AttentionView v;  // [N, HK, S, EV]
  double scale = 1;
  bool causal = false;  // query i sees the keys j <= i
  AttentionView mask;   // [N, H, L, S] with keys side by side, or null; of bool (true: seen) or added
  bool mask_is_bool = false;
  double p = 0;  // probability of being dropped, 0 <= p < 1
  uint64_t seed = 0, offset = 0;
};

struct AttentionParams {
  AttentionInputs in;
  AttentionView y;      // [N, H, L, EV]
  void* lse = nullptr;  // [N, H, L], contiguous
};

struct AttentionBackwardParams {
  AttentionInputs in;
  AttentionView y, dy;        // [N, H, L, EV]
  const void* lse = nullptr;  // [N, H, L], contiguous
  AttentionView dq, dk, dv;   // like q, k, v; data null: not wanted
};

// Decisions of the stream that a row of S keys owns.
inline int64_t attention_row_decisions(int64_t S) {
  return (S + kPhiloxBatch - 1) / kPhiloxBatch * kPhiloxBatch;
}

namespace cpu {
void attention_forward(const AttentionParams&);
void attention_backward(const AttentionBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
