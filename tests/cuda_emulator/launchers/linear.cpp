#include "cuda/linear.h"

#include "workspace.h"

namespace fastnn::cpu {

void linear_forward(const LinearParams& p) {
  const testing::Workspace workspace(cuda::linear_workspace(p));
  cuda::linear_forward(p, /*tf32=*/false, workspace.data(), nullptr);
}
void linear_backward(const LinearBackwardParams& p) {
  const testing::Workspace workspace(cuda::linear_backward_workspace(p));
  cuda::linear_backward(p, /*tf32=*/false, workspace.data(), nullptr);
}

}  // namespace fastnn::cpu
