// Launchers of the activation kernels. They start work on `stream` of the current device and return.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/activation.h"

namespace fastnn::cuda {

void activation_forward(const ActivationParams&, cudaStream_t stream);
void activation_backward(const ActivationBackwardParams&, cudaStream_t stream);

void prelu_forward(const PreluParams&, cudaStream_t stream);
int64_t prelu_workspace(const PreluBackwardParams&);  // in numbers of the compute type
void prelu_backward(const PreluBackwardParams&, void* workspace, cudaStream_t stream);
void rrelu(const RreluParams&, cudaStream_t stream);
void glu_forward(const GluParams&, cudaStream_t stream);
void glu_backward(const GluBackwardParams&, cudaStream_t stream);

}  // namespace fastnn::cuda
