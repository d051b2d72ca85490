// Launchers of the loss kernels. They start work on `stream` of the current device and return.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/loss.h"
#include "fastnn/loss_pointwise.h"

namespace fastnn::cuda {

// A target that is neither a class nor ignored makes its loss and gradient NaN: to raise, the host would have
// to wait.
void cross_entropy_forward(const CrossEntropyParams&, cudaStream_t stream);
void cross_entropy_backward(const CrossEntropyBackwardParams&, cudaStream_t stream);

constexpr int64_t kLossWorkspace = 2 * 1024;  // doubles, for the sums below

// loss = sum of p.loss, divided by the sum of the positions' weights where `mean`: [1] of p.dtype. divisor:
// [1].
void sum_cross_entropy(const CrossEntropyParams& p, bool mean, void* loss, double* divisor, double* workspace,
                       cudaStream_t stream);

// Without p.y: `sum` [1] of p.dtype is the sum of the losses over `divisor`.
void pointwise_loss_forward(const PointwiseLossParams& p, double divisor, void* sum, double* workspace,
                            cudaStream_t stream);
void pointwise_loss_backward(const PointwiseLossBackwardParams&, cudaStream_t stream);

}  // namespace fastnn::cuda
