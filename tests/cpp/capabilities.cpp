// The variants of the CPU kernels' tests: the instruction sets that this machine has.
#include "cpu/capability.h"
#include "harness.h"

namespace fastnn::testing {

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = [] {
    std::vector<Variant> found;
    for (cpu::Capability c : {cpu::Capability::kPortable, cpu::Capability::kAvx2, cpu::Capability::kAvx512}) {
      if (cpu::supported(c)) found.push_back({cpu::name(c), [c] { cpu::set_capability(c); }});
    }
    return found;
  }();
  return all;
}

}  // namespace fastnn::testing
