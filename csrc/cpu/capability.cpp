#include "cpu/capability.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastnn::cpu {
namespace {

constexpr Capability kAll[] = {Capability::kAvx512, Capability::kAvx2, Capability::kPortable};

const char* reason = "";

Capability choose() {
  if (const char* wanted = std::getenv("FASTNN_CPU_CAPABILITY"); wanted && *wanted) {
    for (Capability c : kAll) {
      if (std::strcmp(wanted, name(c)) == 0 && supported(c)) {
        reason = "FASTNN_CPU_CAPABILITY asks for it";
        return c;
      }
    }
    reason = "FASTNN_CPU_CAPABILITY names none that this processor has: the best one is used";
  } else {
    reason = "the best one that this processor and this build have";
  }
  for (Capability c : kAll) {
    if (supported(c)) return c;
  }
  return Capability::kPortable;
}

std::atomic<Capability>& current() {
  static std::atomic<Capability> value{choose()};
  return value;
}

}  // namespace

const char* name(Capability c) {
  switch (c) {
    case Capability::kAvx512: return "avx512";
    case Capability::kAvx2: return "avx2";
    default: return "portable";
  }
}

bool supported(Capability c) {
#ifdef FASTNN_X86
  // gcc's cpu_supports also asks the operating system (XGETBV) for the wider registers.
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (c == Capability::kAvx2) return avx2;
  if (c == Capability::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return c == Capability::kPortable;
}

Capability capability() {
  return current().load(std::memory_order_relaxed);
}

void set_capability(Capability c) {
  current().store(c, std::memory_order_relaxed);
  reason = "set by a call";
}

const char* capability_reason() {
  current();
  return reason;
}

}  // namespace fastnn::cpu
