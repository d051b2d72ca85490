#include "cuda/activation.h"

namespace fastnn::cpu {

void activation_forward(const ActivationParams& p) {
  cuda::activation_forward(p, nullptr);
}
void activation_backward(const ActivationBackwardParams& p) {
  cuda::activation_backward(p, nullptr);
}

}  // namespace fastnn::cpu
