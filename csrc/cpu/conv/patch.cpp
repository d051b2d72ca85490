#include "cpu/conv/patch.h"

#include <algorithm>

#include "cpu/kernels/conv.h"

namespace fastnn::cpu {
namespace {

int64_t min_shift(const TapDim& dim) {
  int64_t least = dim.taps.empty() ? 0 : dim.taps[0].shift;
  for (const Tap& tap : dim.taps) least = std::min(least, tap.shift);
  return least;
}

int64_t max_row(const TapDim& dim) {
  int64_t most = 0;
  for (const Tap& tap : dim.taps) most = std::max(most, (tap.shift - min_shift(dim)) / dim.stride);
  return most;
}

}  // namespace

PatchLayout::PatchLayout(const TapDim (&dims)[3], const int64_t (&block)[3], int64_t channels,
                         int64_t element_size)
    : dims_(dims), channels_(channels), taps_(1) {
  int64_t size = 1;
  for (int d = 0; d < 3; ++d) {
    const TapDim& dim = dims[d];
    min_shift_[d] = min_shift(dim);
    extent_[d] = block[d] + max_row(dim);
    for (const Tap& tap : dim.taps) {
      const int64_t phase = (tap.shift - min_shift_[d]) % dim.stride;
      const auto found = std::find(phase_[d].begin(), phase_[d].end(), phase);
      tap_slot_[d].push_back(found - phase_[d].begin());
      tap_row_[d].push_back((tap.shift - min_shift_[d]) / dim.stride);
      if (found == phase_[d].end()) phase_[d].push_back(phase);
    }
    slots_[d] = static_cast<int64_t>(phase_[d].size());
    size *= slots_[d] * extent_[d];
    taps_ *= static_cast<int64_t>(dim.taps.size());
  }
  // Channels a multiple of 4 KiB apart would share the same few lines of the first-level cache.
  channel_stride_ = size * element_size % 4096 == 0 ? size + 64 / element_size : size;
}

PatchLayout PatchLayout::of_input(const TapDim (&dims)[3], int64_t channels) {
  PatchLayout layout;
  layout.dims_ = dims;
  layout.channels_ = channels;
  layout.channel_stride_ = dims[0].in * dims[1].in * dims[2].in;
  layout.taps_ = 1;
  for (int d = 0; d < 3; ++d) {
    layout.min_shift_[d] = 0;
    layout.extent_[d] = dims[d].in;
    layout.slots_[d] = 1;
    layout.phase_[d] = {0};
    for (const Tap& tap : dims[d].taps) {
      layout.tap_slot_[d].push_back(0);
      layout.tap_row_[d].push_back(tap.shift);
    }
    layout.taps_ *= static_cast<int64_t>(dims[d].taps.size());
  }
  return layout;
}

std::vector<int32_t> PatchLayout::offsets() const {
  std::vector<int32_t> result;
  result.reserve(static_cast<size_t>(channels_ * taps_));
  for (int64_t c = 0; c < channels_; ++c) {
    for (size_t a = 0; a < tap_row_[0].size(); ++a) {
      for (size_t b = 0; b < tap_row_[1].size(); ++b) {
        for (size_t e = 0; e < tap_row_[2].size(); ++e) {
          int64_t at = tap_slot_[0][a] * extent_[0] + tap_row_[0][a];
          at = (at * slots_[1] + tap_slot_[1][b]) * slots_[2] + tap_slot_[2][e];
          at = (at * extent_[1] + tap_row_[1][b]) * extent_[2] + tap_row_[2][e];
          result.push_back(static_cast<int32_t>(c * channel_stride_ + at));
        }
      }
    }
  }
  return result;
}

template <class T>
void PatchLayout::fill(const T* x, int64_t count, const Block& block, T* patch) const {
  const auto& kernels = conv_kernels_of<T>();
  const int64_t height = dims_[1].in, width = dims_[2].in, image = dims_[0].in * height * width;
  int64_t origin[3];
  for (int d = 0; d < 3; ++d) origin[d] = block.begin[d] * dims_[d].stride + min_shift_[d];
  const int64_t step = dims_[2].stride;
  for (int64_t c = 0; c < count; ++c, x += image, patch += channel_stride_) {
    T* row = patch;
    for (int64_t i = 0; i < slots_[0] * extent_[0]; ++i) {
      const int64_t z = origin[0] + phase_[0][i / extent_[0]] + i % extent_[0] * dims_[0].stride;
      for (int64_t j = 0; j < slots_[1] * slots_[2]; ++j) {
        const int64_t left = origin[2] + phase_[2][j % slots_[2]];
        // Columns [first, last) of the patch lie inside the input.
        const int64_t first = std::clamp<int64_t>(left < 0 ? ceil_div(-left, step) : 0, 0, extent_[2]);
        const int64_t last =
            std::clamp<int64_t>(left < width ? ceil_div(width - left, step) : 0, first, extent_[2]);
        int64_t y = origin[1] + phase_[1][j / slots_[2]];
        for (int64_t h = 0; h < extent_[1]; ++h, y += dims_[1].stride, row += extent_[2]) {
          if (z < 0 || z >= dims_[0].in || y < 0 || y >= height) {
            std::fill_n(row, extent_[2], T(0));
            continue;
          }
          std::fill_n(row, first, T(0));
          kernels.copy(x + (z * height + y) * width + left + first * step, step, row + first, last - first);
          std::fill_n(row + last, extent_[2] - last, T(0));
        }
      }
    }
    std::fill(row, patch + channel_stride_, T(0));
  }
}

template void PatchLayout::fill(const float*, int64_t, const Block&, float*) const;
template void PatchLayout::fill(const double*, int64_t, const Block&, double*) const;

Block choose_block(const TapDim (&dims)[3], int64_t channels, int64_t element_size, int64_t bytes,
                   int64_t at_least) {
  // A row shorter than this is not split: its ends would cost more than a larger patch does.
  constexpr int64_t kShortRow = 128;
  // Nor is a block for the threads' sake alone, below this many positions.
  constexpr int64_t kSmallBlock = 512;
  Block block{};
  for (int d = 0; d < 3; ++d) block.size[d] = dims[d].out;
  const auto size = [&] {
    int64_t product = channels * element_size;
    for (int d = 0; d < 3; ++d) {
      const int64_t phases = std::min<int64_t>(dims[d].stride, static_cast<int64_t>(dims[d].taps.size()));
      product *= phases * (block.size[d] + max_row(dims[d]));
    }
    return product;
  };
  const int64_t least[3] = {1, 1, kShortRow};
  const auto few = [&] {
    return Blocks(dims, block).total() < at_least &&
           block.size[0] * block.size[1] * block.size[2] >= kSmallBlock;
  };
  for (int d = 0; d < 3; ++d) {
    while (block.size[d] > least[d] && (size() > bytes || few())) {
      block.size[d] = std::max(least[d], ceil_div(block.size[d], 2));
    }
  }
  return block;
}

Blocks::Blocks(const TapDim (&dims)[3], const Block& block) {
  for (int d = 0; d < 3; ++d) {
    out[d] = dims[d].out;
    count[d] = ceil_div(out[d], block.size[d]);
    size[d] = ceil_div(out[d], count[d]);  // even blocks
    count[d] = ceil_div(out[d], size[d]);
  }
}

Block Blocks::at(int64_t i) const {
  Block block;
  const int64_t index[3] = {i / count[2] / count[1], i / count[2] % count[1], i % count[2]};
  for (int d = 0; d < 3; ++d) {
    block.begin[d] = index[d] * size[d];
    block.size[d] = std::min(size[d], out[d] - block.begin[d]);
  }
  return block;
}

}  // namespace fastnn::cpu
