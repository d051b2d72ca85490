// The gradient of a bias: sums of dy [N, C, L] or [N, L, C] over all but C.
#pragma once
#include "cuda/device.cuh"
#include "fastnn/dtype.h"

namespace fastnn::cuda {

int64_t bias_workspace(int64_t N, int64_t C, int64_t L, bool last);  // in bytes
void bias_backward(DType dtype, const void* dy, int64_t N, int64_t C, int64_t L, bool last, void* db,
                   void* workspace, Stream stream);

}  // namespace fastnn::cuda
