// Linear against loops in double: forward and the three gradients, strides, missing parts, exact bounds.
#include "harness.h"
#include "linear_case.h"

using namespace fastnn;
using namespace fastnn::testing;

namespace {

const LinearLaunch kLaunch = {cpu::linear_forward, cpu::linear_backward};

}  // namespace

TEST(linear_float) {
  each_linear_case([](const LinearCase& c) { check_linear<float>(kLaunch, c, 2e-6); });
}
TEST(linear_double) {
  each_linear_case([](const LinearCase& c) { check_linear<double>(kLaunch, c, 4e-15); });
}

TEST_ONCE(linear_of_many_tiles) {
  each_linear_case_of_many_tiles([](const LinearCase& c) { check_linear<float>(kLaunch, c, 1e-5); });
}

// The gradient of a bias alone, of a weight alone, of an input alone.
TEST(linear_computes_what_is_asked_for) {
  constexpr int64_t N = 5, C = 6, K = 7;
  Buffer<float> x(N * C), w(K * C), dy(N * K);
  x.fill_random(1), w.fill_random(2), dy.fill_random(3);
  Buffer<float> dx(N * C), dw(K * C), db(K), dx1(N * C), dw1(K * C), db1(K);
  LinearBackwardParams p = {.shape = {N, C, K},
                            .dy = {dy.data(), K, 1},
                            .x = {x.data(), C, 1},
                            .w = {w.data(), C, 1},
                            .dx = dx.data(),
                            .dw = dw.data(),
                            .db = db.data()};
  cpu::linear_backward(p);
  p.dx = dx1.data(), p.dw = p.db = nullptr;
  cpu::linear_backward(p);
  p.dx = p.db = nullptr, p.dw = dw1.data();
  cpu::linear_backward(p);
  p.dx = p.dw = nullptr, p.db = db1.data();
  cpu::linear_backward(p);
  CHECK(dx.same_bits(dx1));
  CHECK(dw.same_bits(dw1));
  CHECK(db.same_bits(db1));
}
