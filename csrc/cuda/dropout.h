// Launchers of the dropout kernels. They start work on `stream` of the current device and return.
#pragma once
#include <cuda_runtime_api.h>

#include "fastnn/dropout.h"

namespace fastnn::cuda {

void dropout(const DropoutParams&, cudaStream_t stream);

// Where the state of a generator is when the kernel runs: in the arguments, or, under graph capture, in
// device memory that each replay rewrites.
struct GeneratorState {
  uint64_t seed = 0, offset = 0;
  const int64_t *seed_pointer = nullptr, *offset_pointer = nullptr;  // both or none
  uint64_t offset_in_graph = 0;                                      // added to *offset_pointer
};
// out[0] = seed, out[1] = offset.
void write_stream(const GeneratorState&, uint64_t* out, cudaStream_t stream);

}  // namespace fastnn::cuda
