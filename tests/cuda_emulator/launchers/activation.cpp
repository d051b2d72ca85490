#include "cuda/activation.h"

#include "workspace.h"

namespace fastnn::cpu {

void activation_forward(const ActivationParams& p) {
  cuda::activation_forward(p, nullptr);
}
void activation_backward(const ActivationBackwardParams& p) {
  cuda::activation_backward(p, nullptr);
}

void prelu_forward(const PreluParams& p) {
  cuda::prelu_forward(p, nullptr);
}
void prelu_backward(const PreluBackwardParams& p) {
  const testing::Workspace workspace(cuda::prelu_workspace(p), p.dtype);
  cuda::prelu_backward(p, workspace.data(), nullptr);
}
void glu_forward(const GluParams& p) {
  cuda::glu_forward(p, nullptr);
}
void glu_backward(const GluBackwardParams& p) {
  cuda::glu_backward(p, nullptr);
}
void rrelu(const RreluParams& p) {
  cuda::rrelu(p, nullptr);
}

}  // namespace fastnn::cpu
