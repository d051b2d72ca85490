// Loads and stores with a hint for the cache, which has no meaning here. Like the device they refuse an
// address that is not aligned to the size of what moves; plain ones are left to the undefined-behaviour
// sanitizer.
#pragma once
#include "machine.h"

#define FASTNN_LOAD(name)                                    \
  template <class T>                                         \
  T name(const T* p) {                                       \
    ::fastnn::emulator::check_aligned(p, alignof(T), #name); \
    return *p;                                               \
  }
FASTNN_LOAD(__ldg)
FASTNN_LOAD(__ldca)
FASTNN_LOAD(__ldcg)
FASTNN_LOAD(__ldcs)
FASTNN_LOAD(__ldlu)
FASTNN_LOAD(__ldcv)
#undef FASTNN_LOAD

#define FASTNN_STORE(name)                                   \
  template <class T>                                         \
  void name(T* p, T value) {                                 \
    ::fastnn::emulator::check_aligned(p, alignof(T), #name); \
    *p = value;                                              \
  }
FASTNN_STORE(__stwb)
FASTNN_STORE(__stcg)
FASTNN_STORE(__stcs)
FASTNN_STORE(__stwt)
#undef FASTNN_STORE
