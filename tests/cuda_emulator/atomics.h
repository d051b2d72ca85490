// Atomic operations: plain ones, for no two threads run at once. Each returns the old value.
#pragma once
#include <algorithm>

#include "machine.h"

namespace fastnn::emulator {

template <class T, class F>
T exchange(T* p, const F& f) {
  check_aligned(p, sizeof(T), "an atomic operation");
  const T old = *p;
  *p = f(old);
  return old;
}

}  // namespace fastnn::emulator

#define FASTNN_ATOMIC(name, result)                                                              \
  template <class T>                                                                             \
  T name(T* p, std::type_identity_t<T> value) {                                                  \
    return ::fastnn::emulator::exchange(p, [&]([[maybe_unused]] T old) -> T { return result; }); \
  }
FASTNN_ATOMIC(atomicAdd, old + value)
FASTNN_ATOMIC(atomicSub, old - value)
FASTNN_ATOMIC(atomicExch, value)
FASTNN_ATOMIC(atomicMin, std::min(old, value))
FASTNN_ATOMIC(atomicMax, std::max(old, value))
FASTNN_ATOMIC(atomicAnd, old& value)
FASTNN_ATOMIC(atomicOr, old | value)
FASTNN_ATOMIC(atomicXor, old ^ value)
FASTNN_ATOMIC(atomicInc, old >= value ? T(0) : old + 1)
FASTNN_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef FASTNN_ATOMIC

template <class T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return ::fastnn::emulator::exchange(p, [&](T old) { return old == compare ? value : old; });
}

// Order among memory operations is what it is with one thread at a time: this proves nothing about it.
inline void __threadfence() {}
inline void __threadfence_block() {}
