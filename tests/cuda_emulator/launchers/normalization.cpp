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

}  // namespace fastnn::cpu
