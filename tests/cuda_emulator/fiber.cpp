#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <new>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace fastnn::emulator {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 * 1024;  // red zones around every local variable
#else
constexpr size_t kStackBytes = 64 * 1024;
void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
void __asan_unpoison_memory_region(const void*, size_t) {}
#endif

// Stacks that no fiber uses, the last one used first: it is in cache. Below each an unmapped page.
std::vector<void*> free_stacks;

void* take_stack() {
  if (!free_stacks.empty()) {
    void* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* map =
      mmap(nullptr, kStackBytes + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  void* stack = static_cast<char*>(map) + page;
  if (mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  return stack;
}

Fiber* current = nullptr;
Context resumer;  // who called resume()
const void* resumer_stack = nullptr;
size_t resumer_bytes = 0;

}  // namespace

void Fiber::start(void (*entry)()) {
  stack_ = take_stack();
  entry_ = entry;
  fake_stack_ = nullptr;
  context_.begin(stack_, kStackBytes, &Fiber::run);
}

void Fiber::run() {
  __sanitizer_finish_switch_fiber(nullptr, &resumer_stack, &resumer_bytes);
  current->entry_();
  std::abort();  // entry_() ends with finish()
}

void Fiber::resume() {
  current = this;
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
  Context::step(resumer, context_);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
  current = nullptr;
}

void Fiber::leave(bool for_good) {
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, resumer_stack, resumer_bytes);
  Context::step(context_, resumer);
  __sanitizer_finish_switch_fiber(fake_stack_, &resumer_stack, &resumer_bytes);
}

void Fiber::pause() {
  current->leave(false);
}
void Fiber::finish() {
  current->leave(true);
  std::abort();
}

void Fiber::drop() {
  if (stack_ == nullptr) return;
  __asan_unpoison_memory_region(stack_, kStackBytes);  // red zones of functions that never returned
  free_stacks.push_back(stack_);
  stack_ = nullptr;
}

}  // namespace fastnn::emulator
