// The input of a convolution as a patch in which every kernel tap is a shift.
//
// Output position t of one dimension reads the input at t * stride + shift[r] for tap r. Write shift -
// min(shift) as q * stride + phase: in a copy of the input that is split by phase, tap r reads t + q of its
// phase, so all taps are shifted windows of the same rows, whatever stride, dilation and padding are. A patch
// holds such a copy, zero where the input ends, for a block of output positions that fits the cache:
// [channel, phase D, row D, phase H, phase W, row H, row W]. It is smaller than the input's im2col by the
// number of taps per phase. A register tile then needs one offset per (channel, tap) and may run over the
// ends of output rows. After "The Indirect Convolution Algorithm" (Dukhan, 2019), with shifts in place of its
// pointers.
#pragma once
#include <cstdint>
#include <vector>

namespace fastnn::cpu {

struct Tap {
  int64_t shift;  // the input position read for output position 0
  int64_t index;  // in the kernel
};

// One dimension of a convolution: output position t < out reads input t * stride + tap.shift, if that is in
// [0, in).
struct TapDim {
  int64_t in = 1, out = 1, stride = 1;
  std::vector<Tap> taps;
};

// A block of output positions.
struct Block {
  int64_t begin[3], size[3];
};

class PatchLayout {
 public:
  // For blocks of up to block[d] positions and `channels` channels in one patch.
  PatchLayout(const TapDim (&dims)[3], const int64_t (&block)[3], int64_t channels, int64_t element_size);
  // The input itself as the patch: for stride 1 and windows that never leave the input.
  static PatchLayout of_input(const TapDim (&dims)[3], int64_t channels);

  int64_t elements() const { return channels_ * channel_stride_; }
  int64_t channel_stride() const { return channel_stride_; }
  int64_t row_stride() const { return extent_[2]; }  // from an output row to the next
  int64_t slice_stride() const { return slots_[1] * slots_[2] * extent_[1] * extent_[2]; }
  int64_t taps() const { return taps_; }
  // [channels, taps]: where the window of a (channel, tap) starts.
  std::vector<int32_t> offsets() const;
  // Copies one block of `count` channels from x, an image of in[0] x in[1] x in[2] values per channel.
  template <class T>
  void fill(const T* x, int64_t count, const Block& block, T* patch) const;

 private:
  PatchLayout() = default;
  const TapDim* dims_;
  int64_t channels_, channel_stride_, taps_;
  int64_t min_shift_[3], extent_[3], slots_[3];  // rows per phase; phases that a tap uses
  std::vector<int64_t> phase_[3];                // of each slot
  std::vector<int64_t> tap_slot_[3], tap_row_[3];
};

// The block of output positions whose patch is about `bytes` large; smaller, to give
// `at_least` blocks, if they are not tiny then.
Block choose_block(const TapDim (&dims)[3], int64_t channels, int64_t element_size, int64_t bytes,
                   int64_t at_least);

// Splits [0, out) into blocks and numbers them.
struct Blocks {
  int64_t out[3], size[3], count[3];
  Blocks(const TapDim (&dims)[3], const Block& block);
  int64_t total() const { return count[0] * count[1] * count[2]; }
  Block at(int64_t i) const;
};

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
inline int64_t floor_div(int64_t a, int64_t b) {
  return a >= 0 ? a / b : -((b - 1 - a) / b);
}

}  // namespace fastnn::cpu
