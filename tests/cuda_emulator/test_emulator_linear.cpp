// Linear by CUDA kernels that the CPU has no counterpart of: 16-bit numbers, and floats rounded to tf32.
#include "cuda/linear.h"
#include "cuda_emulator/launchers/workspace.h"
#include "linear_case.h"

using namespace fastnn;
using namespace fastnn::testing;

namespace {

LinearLaunch launch(bool tf32) {
  return {[=](const LinearParams& p) {
            const Workspace workspace(cuda::linear_workspace(p));
            cuda::linear_forward(p, tf32, workspace.data(), nullptr);
          },
          [=](const LinearBackwardParams& p) {
            const Workspace workspace(cuda::linear_backward_workspace(p));
            cuda::linear_backward(p, tf32, workspace.data(), nullptr);
          }};
}

}  // namespace

TEST(linear_bfloat16) {
  each_linear_case([](const LinearCase& c) { check_linear<BFloat16>(launch(false), c, 4e-3); });
}
TEST(linear_float16) {
  each_linear_case([](const LinearCase& c) { check_linear<Float16>(launch(false), c, 5e-4); });
}
TEST(linear_tf32) {
  each_linear_case([](const LinearCase& c) { check_linear<float>(launch(true), c, 1e-3); });
}
TEST_ONCE(linear_of_many_tiles) {
  each_linear_case_of_many_tiles([](const LinearCase& c) {
    check_linear<BFloat16>(launch(false), c, 4e-3);
    check_linear<float>(launch(true), c, 1e-3);
  });
}
