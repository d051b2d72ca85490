// The variants of the emulated kernels' tests: the orders in which blocks and threads run.
#include "cuda_emulator/machine.h"
#include "harness.h"

namespace fastnn::testing {

const std::vector<Variant>& variants() {
  using emulator::Order;
  static const std::vector<Variant> all = {{"forward", [] { emulator::set_order({Order::kForward}); }},
                                           {"reverse", [] { emulator::set_order({Order::kReverse}); }},
                                           {"random", [] { emulator::set_order({Order::kRandom, 1}); }}};
  return all;
}

}  // namespace fastnn::testing
