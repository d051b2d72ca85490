// CUDA's built-in variables. The machine sets them before it resumes a thread.
#pragma once
#include "vectors.h"

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;
