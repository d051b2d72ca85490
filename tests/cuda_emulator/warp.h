// Barriers, shuffles and votes. Each call's place in the source is what the machine knows it by.
#pragma once
#include "machine.h"

namespace fastnn::emulator {

// A warp's operation on one value a lane: out[l] = f(lanes, l) for each lane of the mask, where lanes.has(l)
// and lanes.value(l) tell of the others.
template <class T>
struct Ballot {
  T in, out;
  int argument;
};

template <class T>
class Lanes {
 public:
  explicit Lanes(const Slots& slots) : slots_(slots) {}
  bool has(int l) const { return slots_.of[l] != nullptr; }
  Ballot<T>& operator[](int l) const { return *static_cast<Ballot<T>*>(slots_.of[l]); }

 private:
  const Slots& slots_;
};

template <class T, class F>
T meet(const char* name, unsigned mask, T value, int argument, Where where, const F&) {
  static_assert(std::is_empty_v<F>);
  Ballot<T> mine{value, T{}, argument};
  warp_meeting(
      name, mask, &mine,
      [](const Slots& slots) {
        const Lanes<T> lanes(slots);
        for (int l = 0; l < kWarp; ++l) {
          if (lanes.has(l)) lanes[l].out = F()(lanes, l);
        }
      },
      where);
  return mine.out;
}

// Lane l reads lane `source`, unless that is beyond its segment of the warp: then its own.
template <class T>
T read_lane(const char* name, const Lanes<T>& lanes, int l, int source, bool inside) {
  if (!inside) return lanes[l].in;
  if (!lanes.has(source)) {
    fail(std::string(name) + ": lane " + std::to_string(l) + " reads lane " + std::to_string(source) +
         ", which takes no part");
  }
  return lanes[source].in;
}

inline int check_width(const char* name, int width) {
  if (width < 1 || width > kWarp || (width & (width - 1)) != 0) fail(std::string(name) + ": no such width");
  return width;
}

}  // namespace fastnn::emulator

// `source` and `inside` are of lane l, whose argument is n and whose segment is [first, first + width).
#define FASTNN_SHUFFLE(name, Argument, source, inside)                                        \
  template <class T>                                                                          \
  T name(unsigned mask, T value, Argument argument, int width = warpSize,                     \
         ::fastnn::emulator::Where where = ::fastnn::emulator::Where::current()) {            \
    using namespace ::fastnn::emulator;                                                       \
    check_width(#name, width);                                                                \
    return meet(#name, mask, value, static_cast<int>(argument) << 6 | width, where,           \
                [](const Lanes<T>& lanes, int l) {                                            \
                  const int packed = lanes[l].argument, width = packed & 63, n = packed >> 6; \
                  [[maybe_unused]] const int first = l / width * width;                       \
                  return read_lane(#name, lanes, l, source, inside);                          \
                });                                                                           \
  }
FASTNN_SHUFFLE(__shfl_sync, int, first + (n & (width - 1)), true)
FASTNN_SHUFFLE(__shfl_up_sync, unsigned, l - n, l - n >= first)
FASTNN_SHUFFLE(__shfl_down_sync, unsigned, l + n, l + n < first + width)
FASTNN_SHUFFLE(__shfl_xor_sync, int, l ^ n, (l ^ n) < first + width)
#undef FASTNN_SHUFFLE

#define FASTNN_VOTE(name, T, Result, initial, combine)                                         \
  inline Result name(unsigned mask, T value,                                                   \
                     ::fastnn::emulator::Where where = ::fastnn::emulator::Where::current()) { \
    using namespace ::fastnn::emulator;                                                        \
    return static_cast<Result>(                                                                \
        meet(#name, mask, value, 0, where, [](const Lanes<T>& lanes, [[maybe_unused]] int l) { \
          T all = initial;                                                                     \
          for (int other = 0; other < warpSize; ++other) {                                     \
            if (!lanes.has(other)) continue;                                                   \
            const T value = lanes[other].in;                                                   \
            all = combine;                                                                     \
          }                                                                                    \
          return all;                                                                          \
        }));                                                                                   \
  }
FASTNN_VOTE(__all_sync, int, int, 1, all&& value)
FASTNN_VOTE(__any_sync, int, int, 0, all || value)
FASTNN_VOTE(__ballot_sync, int, unsigned, 0, all | static_cast<int>(unsigned{value != 0} << other))
FASTNN_VOTE(__match_any_sync, unsigned, unsigned, 0, all | unsigned{value == lanes[l].in} << other)
FASTNN_VOTE(__reduce_add_sync, unsigned, unsigned, 0, all + value)
FASTNN_VOTE(__reduce_min_sync, unsigned, unsigned, ~0u, value < all ? value : all)
FASTNN_VOTE(__reduce_max_sync, unsigned, unsigned, 0, value > all ? value : all)
FASTNN_VOTE(__reduce_and_sync, unsigned, unsigned, ~0u, all& value)
FASTNN_VOTE(__reduce_or_sync, unsigned, unsigned, 0, all | value)
FASTNN_VOTE(__reduce_xor_sync, unsigned, unsigned, 0, all ^ value)
#undef FASTNN_VOTE

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       ::fastnn::emulator::Where where = ::fastnn::emulator::Where::current()) {
  ::fastnn::emulator::warp_meeting("__syncwarp", mask, nullptr, nullptr, where);
}

inline void __syncthreads(::fastnn::emulator::Where where = ::fastnn::emulator::Where::current()) {
  ::fastnn::emulator::block_barrier("__syncthreads", false, where);
}
inline int __syncthreads_count(int vote,
                               ::fastnn::emulator::Where where = ::fastnn::emulator::Where::current()) {
  return ::fastnn::emulator::block_barrier("__syncthreads_count", vote != 0, where).yes;
}
inline int __syncthreads_and(int vote,
                             ::fastnn::emulator::Where where = ::fastnn::emulator::Where::current()) {
  const auto votes = ::fastnn::emulator::block_barrier("__syncthreads_and", vote != 0, where);
  return votes.yes == votes.threads;
}
inline int __syncthreads_or(int vote,
                            ::fastnn::emulator::Where where = ::fastnn::emulator::Where::current()) {
  return ::fastnn::emulator::block_barrier("__syncthreads_or", vote != 0, where).yes > 0;
}
