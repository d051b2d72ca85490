// csrc/cuda/device.cuh for the emulator: the words of CUDA in plain C++, launches run at once.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda_emulator/language.h"
#include "cuda_emulator/machine.h"

namespace fastnn::cuda {

using Stream = cudaStream_t;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream,
            const Args&... args) {
  emulator::launch(grid, block, shared_bytes, [&] { kernel(args...); });
}

#define FASTNN_SHARED(T, name, count)  \
  static char fastnn_place_of_##name;  \
  T(&name)                             \
  [count] = *static_cast<T(*)[count]>( \
      ::fastnn::emulator::shared_array(&fastnn_place_of_##name, sizeof(T[count]), alignof(T)))
#define FASTNN_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::fastnn::emulator::dynamic_shared())

}  // namespace fastnn::cuda
