// The seam: what kernels take from CUDA beside the words of its language. On a machine without a GPU,
// tests/cuda_emulator has another header of this name and runs the same sources as plain C++ (HACKING.md).
//
// Kernels and common.cuh include no other header of CUDA's and use no other interface of it.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fastnn::cuda {

using Stream = cudaStream_t;

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("fastnn: a CUDA kernel could not start: ") +
                           cudaGetErrorString(error));
}

// Starts kernel(args...) on `stream`; throws when the launch itself is refused. Never waits, so it may be
// captured in a CUDA graph.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            const Args&... args) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, block, shared_bytes, stream>>>(args...);
  check(cudaGetLastError());
}

// Shared memory of a block: `count` elements known at compile time, or what the launch asked for.
#define FASTNN_SHARED(T, name, count) __shared__ T name[count]
#define FASTNN_DYNAMIC_SHARED(T, name)                                 \
  extern __shared__ __align__(16) unsigned char fastnn_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(fastnn_shared_bytes)

}  // namespace fastnn::cuda
