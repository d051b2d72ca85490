#include "cpu/conv/last.h"

#include <algorithm>

#include "fastnn/conv.h"

namespace fastnn::cpu {

int64_t Phase::taps() const {
  size_t taps = 1;
  for (const TapDim& dim : dims) taps *= dim.taps.size();
  return static_cast<int64_t>(taps);
}

std::vector<Phase> forward_phases(const ConvGeometry& p) {
  Phase phase{};
  for (int d = 0; d < 3; ++d) {
    phase.dims[d] = {p.in[d], p.out[d], p.stride[d], {}};
    for (int64_t r = 0; r < p.kernel[d]; ++r)
      phase.dims[d].taps.push_back({r * p.dilation[d] - p.padding[d], r});
  }
  return {phase};
}

// o * stride + r * dilation - padding = a + t * stride for the taps r that leave no remainder, with
// o = t + shift.
std::vector<Phase> backward_data_phases(const ConvGeometry& p) {
  std::vector<Phase> phases;
  for (int64_t i = 0; i < p.stride[0] * p.stride[1] * p.stride[2]; ++i) {
    Phase phase{{i / p.stride[2] / p.stride[1], i / p.stride[2] % p.stride[1], i % p.stride[2]}, {}};
    bool empty = false;
    for (int d = 0; d < 3; ++d) {
      const int64_t a = phase.begin[d];
      empty = empty || a >= p.in[d];
      phase.dims[d] = {p.out[d], ceil_div(std::max<int64_t>(p.in[d] - a, 0), p.stride[d]), 1, {}};
      for (int64_t r = p.kernel[d] - 1; r >= 0; --r) {
        const int64_t distance = a + p.padding[d] - r * p.dilation[d];
        if (distance % p.stride[d] == 0) phase.dims[d].taps.push_back({distance / p.stride[d], r});
      }
    }
    if (!empty) phases.push_back(phase);
  }
  return phases;
}

PixelPatch::PixelPatch(const std::vector<Phase>& phases, const int64_t (&block)[3], int64_t channels,
                       int64_t groups, int64_t element_size)
    : in_place_(true), channels_(channels), groups_(groups) {
  int64_t max_shift[3];
  for (int d = 0; d < 3; ++d) {
    in_[d] = phases[0].dims[d].in;
    stride_[d] = phases[0].dims[d].stride;
    min_shift_[d] = INT64_MAX, max_shift[d] = INT64_MIN;
    for (const Phase& phase : phases) {
      for (const Tap& tap : phase.dims[d].taps) {
        min_shift_[d] = std::min(min_shift_[d], tap.shift);
        max_shift[d] = std::max(max_shift[d], tap.shift);
        const int64_t last = (phase.dims[d].out - 1) * stride_[d] + tap.shift;
        in_place_ = in_place_ && tap.shift >= 0 && last < in_[d];
      }
    }
    if (min_shift_[d] > max_shift[d]) min_shift_[d] = max_shift[d] = 0;  // a dimension without taps
    extent_[d] = (block[d] - 1) * stride_[d] + max_shift[d] - min_shift_[d] + 1;
  }
  // Pixels a multiple of 4 KiB apart would evict each other from the first-level cache; in a copy that costs
  // nothing to avoid, already the eighth part of it is too regular.
  in_place_ = in_place_ && channels * element_size % 4096 != 0;
  step_[2] = channels;
  if (!in_place_ && channels * element_size % 512 == 0) step_[2] += 64 / element_size;
  step_[1] = step_[2] * (in_place_ ? in_[2] : extent_[2]);
  step_[0] = step_[1] * (in_place_ ? in_[1] : extent_[1]);
}

std::vector<ConvRun> PixelPatch::runs(const Phase& phase) const {
  std::vector<ConvRun> runs;
  for (const Tap& a : phase.dims[0].taps) {
    for (const Tap& b : phase.dims[1].taps) {
      for (const Tap& e : phase.dims[2].taps) {
        const int64_t offset = (a.shift - min_shift_[0]) * step_[0] + (b.shift - min_shift_[1]) * step_[1] +
                               (e.shift - min_shift_[2]) * step_[2];
        if (!runs.empty() && runs.back().offset + runs.back().length == offset) {
          runs.back().length += channels_;
        } else {
          runs.push_back({offset, channels_ / groups_});
        }
      }
    }
  }
  return runs;
}

template <class T>
void PixelPatch::fill(const T* x, const Block& block, T* patch) const {
  if (in_place_) return;
  int64_t first[3];
  for (int d = 0; d < 3; ++d) first[d] = block.begin[d] * stride_[d] + min_shift_[d];
  // Columns [left, right) of the patch lie inside the input.
  const int64_t left = std::clamp<int64_t>(-first[2], 0, extent_[2]);
  const int64_t right = std::clamp<int64_t>(in_[2] - first[2], left, extent_[2]);
  for (int64_t i = 0; i < extent_[0]; ++i) {
    for (int64_t j = 0; j < extent_[1]; ++j, patch += step_[1]) {
      const int64_t z = first[0] + i, y = first[1] + j;
      if (z < 0 || z >= in_[0] || y < 0 || y >= in_[1]) {
        std::fill_n(patch, step_[1], T(0));
        continue;
      }
      const T* from = x + ((z * in_[1] + y) * in_[2] + first[2] + left) * channels_;
      std::fill_n(patch, left * step_[2], T(0));
      T* to = patch + left * step_[2];
      if (step_[2] == channels_) {
        std::copy_n(from, (right - left) * channels_, to);
      } else {
        for (int64_t q = left; q < right; ++q, from += channels_, to += step_[2])
          std::copy_n(from, channels_, to);
      }
      std::fill(patch + right * step_[2], patch + step_[1], T(0));
    }
  }
}

template void PixelPatch::fill(const float*, const Block&, float*) const;
template void PixelPatch::fill(const double*, const Block&, double*) const;

int64_t tile_cost(int (*max_height)(int), int max_vectors, int64_t height, int64_t vectors, int* width) {
  int64_t best = INT64_MAX;
  for (int most = 1; most <= max_vectors; ++most) {
    const int64_t panels = ceil_div(vectors, most);
    int64_t cost = 0;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t nv = Part(vectors, panel, panels).size;
      const int64_t tiles = ceil_div(height, max_height(static_cast<int>(nv)));
      for (const int64_t r : {height / tiles, ceil_div(height, tiles)}) {
        const int64_t count = r == height / tiles ? tiles - height % tiles : height % tiles;
        // Multiply-adds, loads, and the latency of the former: whatever takes longest, and half a cycle.
        cost += count * (1 + std::max({r * nv, r + nv, int64_t{8}}));
        if (height % tiles == 0) break;
      }
    }
    if (cost < best) {
      best = cost;
      *width = most;
    }
  }
  return best;
}

}  // namespace fastnn::cpu
