#include "cuda/normalization.h"

#include "workspace.h"

namespace fastnn::cpu {

void layer_norm_forward(const LayerNormParams& p) {
  cuda::layer_norm_forward(p, nullptr);
}
void layer_norm_backward(const LayerNormBackwardParams& p) {
  const testing::Workspace workspace(cuda::layer_norm_workspace(p), p.dtype);
  cuda::layer_norm_backward(p, workspace.data(), nullptr);
}

void group_norm_forward(const GroupNormParams& p) {
  const testing::Workspace workspace(cuda::group_norm_workspace(p.shape), p.dtype);
  cuda::group_norm_forward(p, workspace.data(), nullptr);
}
void group_norm_backward(const GroupNormBackwardParams& p) {
  const testing::Workspace workspace(cuda::group_norm_workspace(p.shape), p.dtype);
  cuda::group_norm_backward(p, workspace.data(), nullptr);
}

}  // namespace fastnn::cpu
