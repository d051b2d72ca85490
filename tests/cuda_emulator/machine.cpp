#include "machine.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "builtins.h"
#include "fiber.h"
#include "shared.h"

namespace fastnn::emulator {
namespace {

enum class State { kNew, kReady, kInWarp, kAtBarrier, kReturned };

// What a thread waits for.
struct Wait {
  const char* name = nullptr;
  Where where;
  unsigned mask = 0;     // in its warp
  void* slot = nullptr;  // in its warp
};

// A copy under way, from global to shared memory.
struct Copy {
  void* to;
  const void* from;  // null: zeros
  int bytes;
  int group;

  void run() const { from == nullptr ? std::memset(to, 0, bytes) : std::memcpy(to, from, bytes); }
};

struct Thread {
  Fiber fiber;
  uint3 index;
  State state = State::kNew;
  Wait wait;
  std::vector<Copy> copies;
  int groups = 0;  // committed
};

// Lanes of a warp, as bits.
struct Warp {
  unsigned alive = 0, waiting = 0;
};

std::string text(const char* name, const Where& where) {
  std::string file = where.file_name();
  file = file.substr(file.rfind('/') + 1);
  return std::string(name) + " (" + file + ":" + std::to_string(where.line()) + ")";
}

std::string text(const uint3& i) {
  return std::string("(") + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) +
         ")";
}

bool same_place(const Wait& a, const Wait& b) {
  return a.name == b.name && a.where.line() == b.where.line() && a.where.column() == b.where.column();
}

// splitmix64
uint64_t next(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The numbers below n in the order asked for; random ones anew at each call.
class Sequence {
 public:
  Sequence(size_t n, Order order) : numbers_(n), kind_(order.kind), random_(order.seed) {
    std::iota(numbers_.begin(), numbers_.end(), 0);
    if (kind_ == Order::kReverse) std::reverse(numbers_.begin(), numbers_.end());
  }
  const std::vector<unsigned>& again() {
    if (kind_ == Order::kRandom) {
      for (size_t i = numbers_.size(); i > 1; --i) std::swap(numbers_[i - 1], numbers_[next(random_) % i]);
    }
    return numbers_;
  }

 private:
  std::vector<unsigned> numbers_;
  Order::Kind kind_;
  uint64_t random_;
};

class Machine {
 public:
  Order order;
  int64_t launches = 0;
  SharedMemory shared;

  void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);
  [[noreturn]] void fail(const std::string& message);
  Votes block_barrier(const Wait& wait, bool vote);
  void warp_meeting(const Wait& wait, void (*evaluate)(const Slots&));
  unsigned lane() const { return running_ % kWarp; }
  Thread& running() { return threads_[running_]; }

 private:
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  unsigned count_ = 0;    // of the block
  unsigned running_ = 0;  // number of the running thread
  unsigned live_ = 0, at_barrier_ = 0;
  const Thread* first_at_barrier_ = nullptr;
  Votes votes_{}, result_{};  // of the barrier that fills, and of the last one
  const std::function<void()>* body_ = nullptr;
  std::string fault_;

  void run_block(Sequence& sequence);
  void run(unsigned number);
  static void enter();
  void returned();
  void pause(State state, const Wait& wait);
  void open_barrier();
  Warp& warp() { return warps_[running_ / kWarp]; }
  Thread& of_lane(unsigned l) { return threads_[running_ / kWarp * kWarp + l]; }
  void check_lanes(const Wait& wait);
  std::string who_waits() const;
  void drop_threads();
};

Machine& machine() {
  static Machine the;
  return the;
}
std::mutex in_use;

void check_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const auto refuse = [](const std::string& why) { throw Error("fastnn emulator: launch refused: " + why); };
  const auto all = [](dim3 d) { return uint64_t{d.x} * d.y * d.z; };
  if (all(grid) == 0) refuse("an empty grid");
  if (all(block) == 0) refuse("an empty block");
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) refuse("a grid beyond 2^31 - 1, 65535, 65535");
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || all(block) > kMaxThreads) {
    refuse("more than 1024 threads in a block");
  }
  if (shared_bytes > kMaxShared) refuse("more than 227 KiB of dynamic shared memory");
}

void Machine::launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  check_launch(grid, block, shared_bytes);
  gridDim = grid;
  blockDim = block;
  body_ = &body;
  count_ = block.x * block.y * block.z;
  if (threads_.size() < count_) threads_.resize(count_);
  for (unsigned i = 0; i < count_; ++i) {
    threads_[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  Sequence blocks(size_t{grid.x} * grid.y * grid.z, order), sequence(count_, order);
  for (const unsigned number : blocks.again()) {
    blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    shared.begin_block(shared_bytes);
    run_block(sequence);
    if (const std::string damage = shared.end_block(); !damage.empty()) {
      throw Error("fastnn emulator: block " + text(blockIdx) + ": " + damage);
    }
  }
  ++launches;
}

void Machine::run_block(Sequence& sequence) {
  for (unsigned i = 0; i < count_; ++i) {
    threads_[i].state = State::kNew;
    threads_[i].copies.clear();
    threads_[i].groups = 0;
  }
  warps_.assign((count_ + kWarp - 1) / kWarp, {~0u, 0});
  if (count_ % kWarp != 0) warps_.back().alive = (1u << count_ % kWarp) - 1;
  live_ = count_;
  at_barrier_ = 0;
  votes_ = {};
  while (live_ > 0) {
    bool ran = false;
    for (const unsigned i : sequence.again()) {
      if (threads_[i].state != State::kNew && threads_[i].state != State::kReady) continue;
      run(i);
      ran = true;
    }
    if (ran) continue;
    const std::string waits = who_waits();
    drop_threads();
    throw Error("fastnn emulator: block " + text(blockIdx) + ": all threads wait, for ever:" + waits);
  }
}

void Machine::run(unsigned number) {
  Thread& thread = threads_[number];
  running_ = number;
  threadIdx = thread.index;
  if (thread.state == State::kNew) thread.fiber.start(&Machine::enter);
  thread.fiber.resume();
  if (!fault_.empty()) {
    drop_threads();
    throw Error(std::exchange(fault_, {}));
  }
  if (thread.state == State::kReturned) thread.fiber.drop();
}

void Machine::drop_threads() {
  for (unsigned i = 0; i < count_; ++i) threads_[i].fiber.drop();
}

void Machine::enter() {
  Machine& the = machine();
  (*the.body_)();
  the.returned();
  Fiber::finish();
}

void Machine::returned() {
  threads_[running_].state = State::kReturned;
  --live_;
  warp().alive &= ~(1u << lane());
  for (unsigned left = warp().waiting; left != 0; left &= left - 1) {
    const unsigned l = std::countr_zero(left);
    const Wait& wait = of_lane(l).wait;
    if ((wait.mask >> lane() & 1) == 0) continue;
    fail("it has returned, but lane " + std::to_string(l) + " waits for it at " +
         text(wait.name, wait.where));
  }
  if (live_ > 0 && at_barrier_ == live_) open_barrier();
}

void Machine::fail(const std::string& message) {
  fault_ = "fastnn emulator: block " + text(blockIdx) + ", thread " + text(threadIdx) + ": " + message;
  Fiber::finish();
}

void Machine::pause(State state, const Wait& wait) {
  Thread& thread = threads_[running_];
  thread.state = state;
  thread.wait = wait;
  Fiber::pause();
}

Votes Machine::block_barrier(const Wait& wait, bool vote) {
  if (at_barrier_ == 0) {
    first_at_barrier_ = &threads_[running_];
  } else if (!same_place(first_at_barrier_->wait, wait)) {
    fail("it is at " + text(wait.name, wait.where) + ", but thread " + text(first_at_barrier_->index) +
         " waits at " + text(first_at_barrier_->wait.name, first_at_barrier_->wait.where));
  }
  ++at_barrier_;
  ++votes_.threads;
  votes_.yes += vote;
  threads_[running_].state = State::kAtBarrier;
  if (at_barrier_ == live_) {
    open_barrier();
  } else {
    pause(State::kAtBarrier, wait);
  }
  return result_;
}

void Machine::open_barrier() {
  for (unsigned i = 0; i < count_; ++i) {
    if (threads_[i].state == State::kAtBarrier) threads_[i].state = State::kReady;
  }
  at_barrier_ = 0;
  result_ = std::exchange(votes_, {});
}

// The running thread may meet the lanes of its mask.
void Machine::check_lanes(const Wait& wait) {
  if ((wait.mask >> lane() & 1) == 0) {
    fail(text(wait.name, wait.where) + ": its mask does not name the lane itself");
  }
  if (const unsigned gone = wait.mask & ~warp().alive; gone != 0) {
    const unsigned l = std::countr_zero(gone);
    const bool exists = running_ / kWarp * kWarp + l < count_;
    fail(text(wait.name, wait.where) + ": its mask names lane " + std::to_string(l) +
         (exists ? ", which has returned" : ", which the block does not have"));
  }
}

// Lanes that wait with another mask may come here later.
void Machine::warp_meeting(const Wait& wait, void (*evaluate)(const Slots&)) {
  check_lanes(wait);
  const unsigned mine = 1u << lane();
  Slots slots{};
  slots.of[lane()] = wait.slot;
  bool all = (wait.mask & ~warp().waiting) == mine;
  for (unsigned left = wait.mask & warp().waiting; left != 0; left &= left - 1) {
    const unsigned l = std::countr_zero(left);
    const Wait& other = of_lane(l).wait;
    if (other.mask != wait.mask) {
      all = false;
    } else if (!same_place(other, wait)) {
      fail("it is at " + text(wait.name, wait.where) + ", but lane " + std::to_string(l) + " waits at " +
           text(other.name, other.where));
    } else {
      slots.of[l] = other.slot;
      if (!all) break;  // one is enough to compare with: they have been compared with each other
    }
  }
  if (!all) {
    warp().waiting |= mine;
    return pause(State::kInWarp, wait);
  }
  if (evaluate != nullptr) evaluate(slots);
  warp().waiting &= ~wait.mask;
  for (unsigned left = wait.mask & ~mine; left != 0; left &= left - 1) {
    of_lane(std::countr_zero(left)).state = State::kReady;
  }
}

// "threads 0 to 31 at __syncthreads (x.cu:5)", runs of threads at one place together.
std::string Machine::who_waits() const {
  std::string all;
  for (unsigned i = 0; i < count_;) {
    const Thread& thread = threads_[i];
    unsigned last = i;
    if (thread.state == State::kReturned) {
      while (last + 1 < count_ && threads_[last + 1].state == State::kReturned) ++last;
    } else {
      while (last + 1 < count_ && threads_[last + 1].state == thread.state &&
             same_place(threads_[last + 1].wait, thread.wait)) {
        ++last;
      }
    }
    all += "\n  threads " + std::to_string(i) + " to " + std::to_string(last) + " ";
    all += thread.state == State::kReturned ? "have returned"
                                            : "at " + text(thread.wait.name, thread.wait.where);
    i = last + 1;
  }
  return all;
}

}  // namespace

void set_order(Order order) {
  machine().order = order;
}

Order parse_order(const std::string& name) {
  if (name == "forward") return {Order::kForward};
  if (name == "reverse") return {Order::kReverse};
  if (name == "random") return {Order::kRandom};
  if (name.rfind("random:", 0) == 0) return {Order::kRandom, std::stoull(name.substr(7))};
  throw std::invalid_argument("no order of threads is called '" + name + "'");
}

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  const std::lock_guard lock(in_use);
  machine().launch(grid, block, shared_bytes, thread);
}

int64_t launches() {
  return machine().launches;
}

void fail(const std::string& message) {
  machine().fail(message);
}

unsigned lane() {
  return machine().lane();
}

Votes block_barrier(const char* name, bool vote, Where where) {
  return machine().block_barrier({name, where}, vote);
}

void warp_meeting(const char* name, unsigned mask, void* slot, void (*evaluate)(const Slots&), Where where) {
  machine().warp_meeting({name, where, mask, slot}, evaluate);
}

void* shared_array(const void* place, size_t bytes, size_t alignment) {
  SharedMemory& shared = machine().shared;
  void* array = shared.array(place, bytes, alignment);
  if (shared.static_bytes() > kMaxStaticShared) fail("more than 48 KiB of static shared memory");
  if (shared.static_bytes() + shared.dynamic_bytes() > kMaxShared) fail("more than 227 KiB of shared memory");
  return array;
}

void* dynamic_shared() {
  void* memory = machine().shared.dynamic();
  if (memory == nullptr) fail("dynamic shared memory, but the launch gave none");
  return memory;
}

void copy_async(void* to, const void* from, int bytes, bool exists) {
  check_aligned(to, bytes, "cp.async: the destination");
  check_aligned(from, bytes, "cp.async: the source");
  if (exists) std::memcpy(to, from, bytes);  // a source out of bounds shows here, not at the wait
  std::memset(to, 0xff, bytes);
  Thread& thread = machine().running();
  thread.copies.push_back({to, exists ? from : nullptr, bytes, thread.groups});
}

void copy_async_commit() {
  ++machine().running().groups;
}

void copy_async_wait(int pending) {
  Thread& thread = machine().running();
  const auto done = [&](const Copy& copy) { return copy.group < thread.groups - pending; };
  for (const Copy& copy : thread.copies) {
    if (done(copy)) copy.run();
  }
  std::erase_if(thread.copies, done);
}

void check_aligned(const void* p, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % bytes == 0) return;
  fail(std::string(what) + " of " + std::to_string(bytes) + " bytes at a misaligned address");
}

}  // namespace fastnn::emulator
