// The harness itself: its numbers, its buffers, and the parts of the CPU side that every kernel uses.
#include <cmath>
#include <limits>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "harness.h"

using namespace fastnn;
using namespace fastnn::testing;

TEST_ONCE(sixteen_bit_types_round_trip) {
  for (int bits = 0; bits < 65536; ++bits) {
    const Float16 h{static_cast<uint16_t>(bits)};
    const BFloat16 b{static_cast<uint16_t>(bits)};
    if (!std::isnan(to_double(h))) CHECK(from_double<Float16>(to_double(h)).bits == bits);
    if (!std::isnan(to_double(b))) CHECK(from_double<BFloat16>(to_double(b)).bits == bits);
  }
  CHECK(to_double(from_double<Float16>(1 + 0x1p-11)) == 1);  // tie to even
  CHECK(to_double(from_double<Float16>(1 + 0x1.8p-10)) == 1 + 0x1p-9);
  CHECK(to_double(from_double<Float16>(65519)) == 65504);
  CHECK(std::isinf(to_double(from_double<Float16>(65520))));
  CHECK(std::isnan(to_double(from_double<Float16>(std::nan("")))));
}

TEST_ONCE(buffers_hold_what_is_put_in) {
  for (Place place : kPlaces) {
    Case where(name(place));
    for (int64_t n : {0, 1, 7, 1024, 1025}) {
      Buffer<float> a(n, place), b(n, place);
      for (double v : a.doubles()) CHECK(std::isnan(v));
      a.fill_random(3, -2, 2);
      b.fill_random(3, -2, 2);
      CHECK(a.same_bits(b));
      for (double v : a.doubles()) CHECK(v >= -2 && v < 2);
    }
  }
}

TEST_ONCE(buffers_touch_the_guard_page) {
  const Buffer<double> start(5, Place::kStart), end(5, Place::kEnd);
  CHECK(reinterpret_cast<uintptr_t>(start.data()) % 4096 == 0);
  CHECK(reinterpret_cast<uintptr_t>(end.data() + 5) % 4096 == 0);
}

TEST(the_capability_in_use_is_the_one_asked_for) {
  CHECK(cpu::supported(cpu::capability()));
}

TEST_ONCE(parallel_for_visits_every_index_once) {
  each_thread_count([] {
    for (int64_t n : {0, 1, 2, 100}) {
      std::vector<int> visits(n);
      cpu::parallel_for(n, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++visits[i];
      });
      for (int v : visits) CHECK(v == 1);
    }
  });
}

TEST_ONCE(scratch_nests_and_survives_large_requests) {
  const cpu::Scratch<float> a(100);
  const cpu::Scratch<double> large(int64_t{5} << 20);  // above the arena's bound
  const cpu::Scratch<float> b(100);
  CHECK(reinterpret_cast<uintptr_t>(b.data()) % 64 == 0);
  CHECK(a.data() + 100 <= b.data());
  large[(int64_t{5} << 20) - 1] = 1;
}
