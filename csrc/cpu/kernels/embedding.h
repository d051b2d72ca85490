// Inner loops of embeddings. Those that return an entry return the first in their range whose index is no
// row, or -1.
#pragma once
#include "cpu/capability.h"
#include "fastnn/embedding.h"

namespace fastnn::cpu {

// The entries in the order of their rows: those of row r end at ends[r] and begin where those of r - 1 end.
struct SortedEntries {
  const int64_t* ends = nullptr;    // [V]
  const int64_t* source = nullptr;  // [ends[V - 1]]: rows of dy
  const void* scale = nullptr;      // the same of the compute type, or null: ones
};

struct EmbeddingKernels {
  int64_t (*gather)(const EmbeddingParams&, int64_t begin, int64_t end);  // entries
  int64_t (*bags)(const EmbeddingBagParams&, int64_t begin, int64_t end);
  // Columns [left, right) of the rows [begin, end) of dw.
  void (*gradient)(const EmbeddingBackwardParams&, const SortedEntries&, int64_t begin, int64_t end,
                   int64_t left, int64_t right);
  void (*max_gradient)(const EmbeddingMaxBackwardParams&, int64_t left, int64_t right);  // columns
  int64_t (*sample_weights)(const SampleWeightParams&, int64_t begin, int64_t end);      // bags
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(EmbeddingKernels, embedding)
