// The emulator itself: threads and their order, barriers, shuffles, votes, limits of a launch; and that it
// finds what is wrong in kernels that are broken on purpose.
#include <cmath>
#include <set>

#include "cuda/common.cuh"
#include "cuda_emulator/faults.h"
#include "harness.h"

namespace fastnn::cuda {
namespace {

using emulator::contains, emulator::error_of;
using testing::Buffer;
constexpr unsigned kAll = 0xffffffffu;

// ---- Threads ----

__global__ void count_threads(int* visits) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  ++visits[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

TEST(every_thread_runs_once) {
  for (const dim3 block : {dim3(1), dim3(33), dim3(5, 3, 2), dim3(1024)}) {
    const dim3 grid(3, 2, 4);
    Buffer<int32_t> visits(24 * block.x * block.y * block.z);
    visits.fill(0);
    launch(count_threads, grid, block, 0, nullptr, visits.data());
    for (int64_t i = 0; i < visits.size(); ++i) CHECK(visits[i] == 1);
  }
}

__global__ void note_order(int* next, int* order) {
  order[(*next)++] = blockIdx.x * blockDim.x + threadIdx.x;
}

TEST_ONCE(blocks_and_threads_run_in_the_order_asked_for) {
  using emulator::Order;
  std::set<std::vector<double>> seen;
  for (const char* name : {"forward", "reverse", "random:1", "random:2"}) {
    emulator::set_order(emulator::parse_order(name));
    Buffer<int32_t> next(1), order(12);
    next.fill(0);
    launch(note_order, dim3(3), dim3(4), 0, nullptr, next.data(), order.data());
    const auto numbers = order.doubles();
    seen.insert(numbers);
    for (int i = 0; i < 12; ++i) {
      if (std::string(name) == "forward") CHECK(numbers[i] == i);
      if (std::string(name) == "reverse") CHECK(numbers[i] == 11 - i);
    }
    CHECK(std::set<double>(numbers.begin(), numbers.end()).size() == 12);
  }
  CHECK(seen.size() == 4);
  emulator::set_order({});
}

__global__ void nothing() {}

TEST_ONCE(a_launch_beyond_the_limits_is_refused) {
  const auto refused = [](dim3 grid, dim3 block, size_t shared) {
    return contains(error_of([&] { launch(nothing, grid, block, shared, nullptr); }), "launch refused");
  };
  CHECK(!refused(dim3(1), dim3(1024), 227 * 1024));
  CHECK(!refused(dim3(1, 1, 65535), dim3(1, 1, 64), 0));
  CHECK(refused(dim3(0), dim3(32), 0));
  CHECK(refused(dim3(1, 65536), dim3(32), 0));
  CHECK(refused(dim3(1, 1, 65536), dim3(32), 0));
  CHECK(refused(dim3(1), dim3(0), 0));
  CHECK(refused(dim3(1), dim3(1025), 0));
  CHECK(refused(dim3(1), dim3(32, 33), 0));
  CHECK(refused(dim3(1), dim3(1, 1, 65), 0));
  CHECK(refused(dim3(1), dim3(32), 227 * 1024 + 1));
}

// ---- Barriers ----

// Each thread sends its number to its opposite. `barriers`: bit 0 the one before reading, bit 1 the one
// before the next round's writing.
template <int kBarriers>
__global__ void reverse_twice(int* out) {
  FASTNN_SHARED(int, numbers, 64);
  const int t = threadIdx.x;
  int mine = t;
  for (int round = 0; round < 2; ++round) {
    numbers[t] = mine + 100;
    if (kBarriers & 1) __syncthreads();
    mine = numbers[63 - t];
    if (kBarriers & 2) __syncthreads();
  }
  out[t] = mine;
}

template <int kBarriers>
int wrong_numbers() {
  Buffer<int32_t> out(64);
  launch(reverse_twice<kBarriers>, dim3(1), dim3(64), 0, nullptr, out.data());
  int wrong = 0;
  for (int t = 0; t < 64; ++t) wrong += out[t] != t + 200;
  return wrong;
}

TEST(a_missing_barrier_shows) {
  CHECK(wrong_numbers<3>() == 0);
  CHECK(wrong_numbers<2>() > 0);
  CHECK(wrong_numbers<1>() > 0);
  CHECK(wrong_numbers<0>() > 0);
}

__global__ void counting_barriers(int* out) {
  const int t = threadIdx.x;
  if (t >= 40) return;  // barriers wait for the others only
  const int three = __syncthreads_count(t % 3 == 0);
  const int all = __syncthreads_and(t < 40), not_all = __syncthreads_and(t < 39);
  const int any = __syncthreads_or(t == 39), none = __syncthreads_or(t == 40);
  out[t] = three == 14 && all && !not_all && any && !none;
}

TEST(barriers_count_votes) {
  Buffer<int32_t> out(40);
  launch(counting_barriers, dim3(1), dim3(64), 0, nullptr, out.data());
  for (int t = 0; t < 40; ++t) CHECK(out[t] == 1);
}

__global__ void two_barriers() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void barrier_and_shuffle() {
  if (threadIdx.x < 16) __syncthreads();
  if (threadIdx.x >= 16) __shfl_xor_sync(kAll, 1, 1);
}

TEST(a_barrier_not_reached_by_all_is_found) {
  CHECK(contains(error_of([] { launch(two_barriers, dim3(1), dim3(32), 0, nullptr); }),
                 "waits at __syncthreads"));
  CHECK(contains(error_of([] { launch(barrier_and_shuffle, dim3(1), dim3(32), 0, nullptr); }),
                 "all threads wait, for ever"));
  launch(nothing, dim3(1), dim3(32), 0, nullptr);  // after a fault the machine is as new
}

// ---- Shuffles and votes ----

template <class T>
__global__ void shuffles(T* out, int width) {
  const int l = threadIdx.x % 32;
  T* mine = out + threadIdx.x * 5;
  const T value = static_cast<T>(100 + l);
  mine[0] = __shfl_sync(kAll, value, l + 3, width);
  mine[1] = __shfl_up_sync(kAll, value, 2, width);
  mine[2] = __shfl_down_sync(kAll, value, 2, width);
  mine[3] = __shfl_xor_sync(kAll, value, 5, width);
  mine[4] = __shfl_sync(kAll, value, -1, width);
}

TEST(shuffles_follow_their_definition) {
  const auto check = [](auto t) {
    for (int width : {2, 8, 16, 32}) {
      Buffer<decltype(t)> out(64 * 5);
      launch(shuffles<decltype(t)>, dim3(1), dim3(64), 0, nullptr, out.data(), width);
      for (int thread = 0; thread < 64; ++thread) {
        const int l = thread % 32, first = l / width * width;
        const int from[] = {first + (l + 3) % width, l - 2 >= first ? l - 2 : l,
                            l + 2 < first + width ? l + 2 : l, (l ^ 5) < first + width ? l ^ 5 : l,
                            first + width - 1};
        for (int k = 0; k < 5; ++k) CHECK(out[thread * 5 + k] == 100 + from[k]);
      }
    }
  };
  check(int32_t{});
  check(double{});
}

__global__ void votes(int* out) {
  const int l = threadIdx.x;
  const bool even = l % 2 == 0;
  const unsigned mask = even ? 0x55555555u : 0xaaaaaaaau;  // two groups that don't wait for each other
  bool right = __ballot_sync(mask, l < 8) == (mask & 0xff);
  right = right && __all_sync(mask, even) == even && __any_sync(mask, l == 4) == even;
  right = right && __reduce_add_sync(mask, l) == (even ? 240u : 256u);
  right = right && __reduce_max_sync(mask, l) == (even ? 30u : 31u) && __reduce_min_sync(mask, l) == !even;
  right = right && __reduce_or_sync(mask, 1u << l) == mask && __reduce_and_sync(mask, ~(1u << l)) == ~mask;
  right = right && __reduce_xor_sync(mask, 1u << l) == mask;
  right = right && __match_any_sync(mask, l / 4) == (mask & 0xfu << l / 4 * 4);
  __syncwarp();
  out[l] = right;
}

TEST(votes_of_masks) {
  Buffer<int32_t> out(32);
  launch(votes, dim3(1), dim3(32), 0, nullptr, out.data());
  for (int l = 0; l < 32; ++l) CHECK(out[l] == 1);
}

// Lanes write, then read their neighbour's.
template <bool kSync>
__global__ void warp_exchange(int* out) {
  FASTNN_SHARED(int, numbers, 32);
  numbers[threadIdx.x] = threadIdx.x;
  if (kSync) __syncwarp();
  out[threadIdx.x] = numbers[threadIdx.x ^ 1];
}

TEST(a_missing_warp_barrier_shows) {
  Buffer<int32_t> out(32);
  const auto wrong = [&] {
    int count = 0;
    for (int l = 0; l < 32; ++l) count += out[l] != (l ^ 1);
    return count;
  };
  launch(warp_exchange<true>, dim3(1), dim3(32), 0, nullptr, out.data());
  CHECK(wrong() == 0);
  launch(warp_exchange<false>, dim3(1), dim3(32), 0, nullptr, out.data());
  CHECK(wrong() > 0);
}

enum Divergence {
  kReturnedLane,
  kAbsentLane,
  kOtherMask,
  kNotNamed,
  kOtherShuffle,
  kReadsOutside,
  kOddWidth
};

template <Divergence kWhat>
__global__ void diverge() {
  const int l = threadIdx.x;
  if (kWhat == kReturnedLane && l == 7) return;
  if (kWhat == kOtherMask) {
    __shfl_xor_sync(l < 16 ? 0xffffffffu : 0xffff0000u, l, 1);
  } else if (kWhat == kNotNamed) {
    __shfl_sync(0xfffffffeu, l, 1);
  } else if (kWhat == kOtherShuffle && l < 16) {
    __shfl_up_sync(kAll, l, 1);
  } else if (kWhat == kReadsOutside) {
    if (l < 16) __shfl_sync(0xffffu, l, 20);
  } else {
    __shfl_sync(kAll, l, 0, kWhat == kOddWidth ? 12 : 32);
  }
}

template <Divergence kWhat>
std::string divergence(unsigned threads = 32) {
  return error_of([&] { launch(diverge<kWhat>, dim3(1), dim3(threads), 0, nullptr); });
}

TEST(divergence_at_a_shuffle_is_found) {
  const std::string returned = divergence<kReturnedLane>();
  CHECK(contains(returned, "returned") && contains(returned, "test_emulator.cpp:"));
  CHECK(contains(divergence<kAbsentLane>(20), "which the block does not have"));
  CHECK(!divergence<kOtherMask>().empty());
  CHECK(contains(divergence<kNotNamed>(), "does not name the lane itself"));
  CHECK(contains(divergence<kOtherShuffle>(), "waits at"));
  CHECK(contains(divergence<kReadsOutside>(), "reads lane 20, which takes no part"));
  CHECK(contains(divergence<kOddWidth>(), "no such width"));
}

}  // namespace
}  // namespace fastnn::cuda
