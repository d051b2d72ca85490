// Division by a number that the host knows, as a multiplication: what turns a thread's index into
// coordinates.
//
// quotient = (n + high half of n * multiplier) >> shift, exact for n >= 0 (Granlund, Montgomery: Division by
// invariant integers using multiplication, PLDI 1994, figure 4.1). In 64 bits too: a division there is a
// call, and registers spill around it.
#pragma once
#include <type_traits>

#include "cuda/common.cuh"

namespace fastnn::cuda {

template <class I>
struct Divisor {
  static constexpr bool kIs32 = sizeof(I) == 4;
  static constexpr int kBits = 8 * sizeof(I);
  using Half = std::conditional_t<kIs32, uint32_t, uint64_t>;
  using Whole = std::conditional_t<kIs32, uint64_t, unsigned __int128>;
  Half multiplier = 1;
  uint32_t shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t d) {  // 1 <= d < 2^(kBits - 1)
    while ((uint64_t{1} << shift) < static_cast<uint64_t>(d)) ++shift;
    const Whole beyond = (Whole{1} << shift) - static_cast<Whole>(d);
    multiplier = static_cast<Half>((beyond << kBits) / static_cast<Whole>(d) + 1);
  }
  __device__ __forceinline__ I quotient(I n) const {
    const Half u = static_cast<Half>(n);
    return static_cast<I>((static_cast<Half>(static_cast<Whole>(u) * multiplier >> kBits) + u) >> shift);
  }
};

// Numbers of at most this size leave room for the threads of a last block.
constexpr int64_t kMost32 = 0x7fffffff - 4096;

}  // namespace fastnn::cuda
