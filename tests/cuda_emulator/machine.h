// The machine that the emulated kernels run on: blocks one after another, the threads of a block as fibers.
//
// A thread runs until it waits for others, at a barrier or at an operation of its warp, or returns. So
// threads are as far apart as they can be: what one reads before another has written it is wrong in one of
// the orders. Everything that a kernel may not do and that shows here is an Error, thrown by launch(). One
// launch at a time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

#include "vectors.h"

namespace fastnn::emulator {

// What an H100 allows.
constexpr int kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxStaticShared = 48 * 1024, kMaxShared = 227 * 1024;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The order in which blocks run, and in which threads of a block that can run do.
struct Order {
  enum Kind { kForward, kReverse, kRandom } kind = kForward;
  uint64_t seed = 0;
};
void set_order(Order);
// "forward", "reverse", "random" or "random:<seed>".
Order parse_order(const std::string&);

// Runs thread() once for every thread of the grid, with blockIdx and threadIdx set.
void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// Of this process: launches that have ended, for tests that ask whether a kernel ran.
int64_t launches();

// ---- For the words of the language, called by the running thread ----

using Where = std::source_location;

// Stops the launch. The message is preceded by the thread's coordinates.
[[noreturn]] void fail(const std::string& message);

unsigned lane();  // of the running thread in its warp

// Waits until every thread of the block that has not returned is here, at the same barrier of the source.
struct Votes {
  int threads, yes;
};
Votes block_barrier(const char* name, bool vote, Where);

// Waits until the lanes of `mask` are here, with this mask, at the same place. The last one calls
// evaluate(slots), where slots[lane] is what that lane passed; those of lanes outside the mask are null.
struct Slots {
  void* of[kWarp];
};
void warp_meeting(const char* name, unsigned mask, void* slot, void (*evaluate)(const Slots&), Where);

// Memory shared by the block: an array for each place in the source, and the one whose size the launch gave.
// All bits are one, which is NaN in every floating type, when the block starts; around it nothing may be
// touched.
void* shared_array(const void* place, size_t bytes, size_t alignment);
void* dynamic_shared();

// cp.async: the copy takes place at the wait for its group, of the running thread; until then the destination
// is NaN. Without `exists` it becomes zeros.
void copy_async(void* to, const void* from, int bytes, bool exists);
void copy_async_commit();
void copy_async_wait(int pending);  // until at most so many groups are under way

// Fails unless p is aligned to `bytes`.
void check_aligned(const void* p, size_t bytes, const char* what);

}  // namespace fastnn::emulator
