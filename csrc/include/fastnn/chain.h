// A run of layers as one operation: batch normalisation, residual added, activation, pooling, dropout, each
// of them optional, in this order. Between the layers the numbers stay in cache; what backward needs of them
// it makes again from x. The numbers are those of the layers one by one, bit for bit.
#pragma once
#include "fastnn/batchnorm.h"
#include "fastnn/pooling.h"

namespace fastnn {

struct ChainStages {
  bool normalize = false;
  bool residual =
      false;            // then no pooling and dropout, and an activation is one whose gradient follows from y
  int activation = -1;  // position in FASTNN_ACTIVATIONS; -1: none
  double a = 0, b = 0;  // its parameters
  enum Pool { kNone, kMax, kAverage };
  Pool pool = kNone;
  PoolShape windows;  // of the whole batch
  bool count_include_pad = true;
  int64_t divisor = 0;  // these two as in AvgPoolParams
  double p = 0;         // dropout; 0: none
  uint64_t seed = 0, offset = 0;
};

struct ChainParams {
  ChainStages stages;
  BatchNormParams norm;  // x, its shape and dtype; y is not read; the rest where the chain normalises
  const void* residual = nullptr;  // as x, where the chain adds one
  void* y = nullptr;               // [N, C, OL] or, channels last, [N, OL, C]; OL = L without pooling
  void* codes = nullptr;           // max pooling: as y, see MaxPoolParams, or null
  void* coefficients = nullptr;  // [3, C] mean, scale and shift, written where the chain normalises; or null
};

struct ChainBackwardParams {
  ChainStages stages;
  BatchNormBackwardParams norm;        // x, its shape and dtype; dy and dx are not read
  const void* dy = nullptr;            // as y
  const void* y = nullptr;             // where a residual was added before an activation
  const void* codes = nullptr;         // as written
  const void* coefficients = nullptr;  // as written
  void* dx = nullptr;                  // as x; scratch where wants_dx is false
  void* dresidual = nullptr;           // as x, or null
  bool wants_dx = true;
};

namespace cpu {
void chain_forward(const ChainParams&);
void chain_backward(const ChainBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
