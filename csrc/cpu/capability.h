// Which instruction set the CPU kernels use. Every file of csrc/cpu/kernels is compiled once per
// capability into a namespace of that name; the choice is made at load time:
// the best one that processor and build have, or what FASTNN_CPU_CAPABILITY names.
#pragma once

namespace fastnn::cpu {

enum class Capability : int { kPortable, kAvx2, kAvx512 };

Capability capability();          // the one in use
bool supported(Capability);       // built in, and this processor can run it
void set_capability(Capability);  // for tests; the caller checks supported()
const char* name(Capability);     // "portable", "avx2", "avx512"
const char* capability_reason();  // one sentence: why this one

}  // namespace fastnn::cpu

// Declares `const Table& stem_kernels()`, the table of kernels of the capability in use.
// Each csrc/cpu/kernels/<stem>.cpp defines `extern const Table stem` in namespace FASTNN_ISA.
#ifdef FASTNN_X86
#define FASTNN_DECLARE_KERNELS(Table, stem)          \
  namespace fastnn::cpu {                            \
  namespace portable {                               \
  extern const Table stem;                           \
  }                                                  \
  namespace avx2 {                                   \
  extern const Table stem;                           \
  }                                                  \
  namespace avx512 {                                 \
  extern const Table stem;                           \
  }                                                  \
  inline const Table& stem##_kernels() {             \
    switch (capability()) {                          \
      case Capability::kAvx512: return avx512::stem; \
      case Capability::kAvx2: return avx2::stem;     \
      default: return portable::stem;                \
    }                                                \
  }                                                  \
  }
#else
#define FASTNN_DECLARE_KERNELS(Table, stem) \
  namespace fastnn::cpu {                   \
  namespace portable {                      \
  extern const Table stem;                  \
  }                                         \
  inline const Table& stem##_kernels() {    \
    return portable::stem;                  \
  }                                         \
  }
#endif
