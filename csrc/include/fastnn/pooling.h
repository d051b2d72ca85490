// Max and average pooling, fixed and adaptive windows, up to three spatial dimensions.
//
// Window o of a dimension starts at begin = o * stride - padding (adaptive: floor(o * in / out)) and reads
// begin + k * dilation for every tap k that lies inside the input. A lower rank has leading dimensions of
// size 1 (kernel 1, stride 1, padding 0, dilation 1).
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

struct PoolShape {
  int64_t n = 0, c = 0;
  int64_t in[3] = {1, 1, 1};        // D, H, W
  int64_t out[3] = {1, 1, 1};       // OD, OH, OW
  int64_t kernel[3] = {1, 1, 1};    // taps; adaptive: the size of the largest window
  int64_t stride[3] = {1, 1, 1};    // not read when adaptive
  int64_t padding[3] = {0, 0, 0};   // 0 when adaptive
  int64_t dilation[3] = {1, 1, 1};  // 1 for averages and when adaptive
  bool adaptive = false;
  bool channels_last = false;  // memory order n, d, h, w, c instead of n, c, d, h, w; for every array

  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  int64_t inputs() const { return n * c * in[0] * in[1] * in[2]; }
  int64_t outputs() const { return n * c * out[0] * out[1] * out[2]; }
};

// Size of the largest adaptive window of a dimension.
inline int64_t adaptive_kernel(int64_t in, int64_t out) {
  int64_t size = 1;
  for (int64_t o = 0; o < out; ++o) {
    const int64_t begin = o * in / out, end = ((o + 1) * in + out - 1) / out;
    if (end - begin > size) size = end - begin;
  }
  return size;
}

// A code is the tap at which the maximum was found: (kd * KH + kh) * KW + kw. One byte where it fits.
inline bool pool_codes_are_bytes(const PoolShape& shape) {
  return shape.taps() <= 256;
}

struct MaxPoolParams {
  DType dtype = DType::kFloat32;
  PoolShape shape;
  const void* x = nullptr;  // [N, C, D, H, W]
  void* y = nullptr;        // [N, C, OD, OH, OW]
  void* codes = nullptr;    // [N, C, OD, OH, OW] uint8, or int32 beyond 256 taps; null: not wanted
};

struct MaxPoolBackwardParams {
  DType dtype = DType::kFloat32;
  PoolShape shape;
  const void* dy = nullptr;     // [N, C, OD, OH, OW]
  const void* codes = nullptr;  // [N, C, OD, OH, OW]
  void* dx = nullptr;           // [N, C, D, H, W]
};

// torch's indices, the position (d * H + h) * W + w of each maximum in its plane.
struct MaxPoolIndicesParams {
  PoolShape shape;
  const void* codes = nullptr;  // [N, C, OD, OH, OW]
  int64_t* indices = nullptr;   // [N, C, OD, OH, OW]
};

struct AvgPoolParams {
  DType dtype = DType::kFloat32;
  PoolShape shape;
  bool count_include_pad = true;
  int64_t divisor = 0;      // 0: the number of elements in the window
  const void* x = nullptr;  // [N, C, D, H, W]
  void* y = nullptr;        // [N, C, OD, OH, OW]
};

struct AvgPoolBackwardParams {
  DType dtype = DType::kFloat32;
  PoolShape shape;
  bool count_include_pad = true;
  int64_t divisor = 0;
  const void* dy = nullptr;  // [N, C, OD, OH, OW]
  void* dx = nullptr;        // [N, C, D, H, W]
};

namespace cpu {
// These return the name of the algorithm that ran.
const char* max_pool_forward(const MaxPoolParams&);
const char* max_pool_backward(const MaxPoolBackwardParams&);
const char* avg_pool_forward(const AvgPoolParams&);
const char* avg_pool_backward(const AvgPoolBackwardParams&);

void max_pool_indices(const MaxPoolIndicesParams&);
}  // namespace cpu

}  // namespace fastnn
