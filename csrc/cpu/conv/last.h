// What the convolutions with channels last share: phases of output positions, and a copy of the input with
// its padding.
//
// Forward has one phase. Backward-data with stride s has s per dimension: the positions begin + t * s of dx,
// each phase with the taps that meet it. All phases read the same input at stride 1.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/conv/patch.h"
#include "cpu/kernels/conv_last.h"

namespace fastnn {
struct ConvGeometry;
}

namespace fastnn::cpu {

struct Phase {
  int64_t begin[3];  // the first output position
  TapDim dims[3];    // over t; taps in the order of their shifts
  int64_t taps() const;
};

std::vector<Phase> forward_phases(const ConvGeometry&);
std::vector<Phase> backward_data_phases(const ConvGeometry&);

// The input of a block of output positions, [D, H, W, channels], zero where the input ends; or the input
// itself, where no window leaves it.
class PixelPatch {
 public:
  // For blocks of up to block[d] positions; a pixel has `channels`, in `groups`.
  PixelPatch(const std::vector<Phase>& phases, const int64_t (&block)[3], int64_t channels, int64_t groups,
             int64_t element_size);

  bool in_place() const { return in_place_; }
  int64_t elements() const { return in_place_ ? 0 : extent_[0] * step_[0]; }
  int64_t step(int d) const { return step_[d]; }  // from a position to the next
  // Where the values of an output position begin, tap by tap: the channels of the first group, or those of
  // neighbouring taps joined where they are contiguous.
  std::vector<ConvRun> runs(const Phase&) const;
  // The first value of a block's first position; x: the image.
  template <class T>
  const T* origin(const T* x, const Block& block, const T* patch) const {
    if (!in_place_) return patch;
    for (int d = 0; d < 3; ++d) x += (block.begin[d] * stride_[d] + min_shift_[d]) * step_[d];
    return x;
  }
  template <class T>
  void fill(const T* x, const Block& block, T* patch) const;

 private:
  bool in_place_;
  int64_t channels_, groups_;
  int64_t in_[3], stride_[3], min_shift_[3], extent_[3], step_[3];
};

// Half cycles of a grid of register tiles over `height` rows and `vectors` vectors per step, for the best
// width of a tile, which is stored in `width`.
int64_t tile_cost(int (*max_height)(int), int max_vectors, int64_t height, int64_t vectors, int* width);

// Part i of n when [0, size) is cut evenly.
struct Part {
  int64_t begin, size;
  Part(int64_t total, int64_t i, int64_t n) : begin(total * i / n), size(total * (i + 1) / n - begin) {}
};

}  // namespace fastnn::cpu
