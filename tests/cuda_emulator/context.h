// Where a computation stands, and the step from one to another: a dozen instructions on x86-64, ucontext (a
// system call each way) elsewhere.
#pragma once
#include <cstddef>

#if defined(__x86_64__) && !defined(FASTNN_UCONTEXT)

// Pushes what a function must preserve, leaves the stack pointer in *from, takes the stack `to` and what was
// pushed there.
extern "C" void fastnn_emulator_switch(void** from, void* to);
asm(R"(
.pushsection .text.fastnn_emulator_switch, "axG", @progbits, fastnn_emulator_switch, comdat
.weak fastnn_emulator_switch
.hidden fastnn_emulator_switch
.type fastnn_emulator_switch, @function
fastnn_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastnn_emulator_switch, .-fastnn_emulator_switch
.popsection
)");

namespace fastnn::emulator {

struct Context {
  void* stack_pointer = nullptr;

  // entry(), which never returns, on a fresh stack.
  void begin(void* stack, size_t bytes, void (*entry)()) {
    // From below: the six registers, the address to go to, and a zero where a caller would stand.
    void** top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes) - 8;
    for (int i = 0; i < 8; ++i) top[i] = nullptr;
    top[6] = reinterpret_cast<void*>(entry);
    stack_pointer = top;
  }
  static void step(Context& from, Context& to) {
    fastnn_emulator_switch(&from.stack_pointer, to.stack_pointer);
  }
};

}  // namespace fastnn::emulator

#else

#include <ucontext.h>

namespace fastnn::emulator {

struct Context {
  ucontext_t state;

  void begin(void* stack, size_t bytes, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = bytes;
    state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  static void step(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
};

}  // namespace fastnn::emulator

#endif
