// A fiber runs a function on a stack of its own, which can pause in the middle and be resumed. One fiber
// stands for one CUDA thread. The address sanitizer is told of every switch: it keeps account of the stack in
// use.
#pragma once
#include "context.h"

namespace fastnn::emulator {

class Fiber {
 public:
  // entry() runs in the fiber at the first resume(). It ends with finish(), not with a return.
  void start(void (*entry)());
  // Runs the fiber until it pauses or finishes. Called outside of any fiber.
  void resume();
  // Called in the running fiber.
  static void pause();
  [[noreturn]] static void finish();
  // Gives the stack back, of a fiber that has finished or will never be resumed.
  void drop();

 private:
  void* stack_ = nullptr;       // lowest byte
  void* fake_stack_ = nullptr;  // the sanitizer's
  Context context_;
  void (*entry_)() = nullptr;

  static void run();
  void leave(bool for_good);
};

}  // namespace fastnn::emulator
