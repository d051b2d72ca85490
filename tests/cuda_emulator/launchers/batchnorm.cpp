#include "cuda/batchnorm.h"

#include "workspace.h"

namespace fastnn::cpu {

void batchnorm_forward(const BatchNormParams& p) {
  const testing::Workspace workspace(cuda::batchnorm_workspace(p.shape), p.dtype);
  cuda::batchnorm_forward(p, workspace.data(), nullptr);
}
void batchnorm_backward(const BatchNormBackwardParams& p) {
  const testing::Workspace workspace(cuda::batchnorm_workspace(p.shape), p.dtype);
  cuda::batchnorm_backward(p, workspace.data(), nullptr);
}

}  // namespace fastnn::cpu
