// Rows of a table by index, and their sums, means and maxima over bags.
//
// Letters: V rows of the table, D numbers in a row, E indices (entries), B bags. Bag b has the entries
// [offsets[b], offsets[b + 1]). Entries whose index is `padding` (none if negative) have no part in a bag and
// give no gradient.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"

namespace fastnn {

enum class BagMode : int { kSum, kMean, kMax };

struct EmbeddingParams {
  DType dtype = DType::kFloat32;
  int64_t V = 0, D = 0, E = 0;
  const int64_t* index = nullptr;  // [E]
  const void* weight = nullptr;    // [V, D]
  void* y = nullptr;               // [E, D]
};

struct EmbeddingBagParams {
  DType dtype = DType::kFloat32;
  BagMode mode = BagMode::kSum;
  int64_t V = 0, D = 0, B = 0;
  int64_t padding = -1;
  const int64_t* index = nullptr;       // [E]
  const int64_t* offsets = nullptr;     // [B + 1]
  const void* sample_weight = nullptr;  // [E] of the compute type, or null: ones; kSum only
  const void* weight = nullptr;         // [V, D]
  void* y = nullptr;                    // [B, D]; 0 where a bag is empty
  int64_t* size = nullptr;              // [B], kMean: entries that count
  int64_t* winner = nullptr;            // [B, D], kMax: the row that each number is from, -1 in an empty bag
};

struct EmbeddingBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t V = 0, D = 0, E = 0, B = 0;
  int64_t padding = -1;
  bool by_frequency = false;            // each row divided by the number of its entries
  const int64_t* index = nullptr;       // [E]
  const int64_t* offsets = nullptr;     // [B + 1], or null: entry e has row e of dy
  const void* sample_weight = nullptr;  // [E] of the compute type, or null: ones
  const int64_t* size = nullptr;        // [B], or null: by which each bag's gradient is divided
  const void* dy = nullptr;             // [B, D], or [E, D]
  void* dw = nullptr;                   // [V, D]
};

// Of kMax.
struct EmbeddingMaxBackwardParams {
  DType dtype = DType::kFloat32;
  int64_t V = 0, D = 0, B = 0;
  const int64_t* winner = nullptr;  // [B, D]
  const void* dy = nullptr;         // [B, D]
  void* dw = nullptr;               // [V, D]
};

// The gradient of sample_weight: products of rows of dy and of the table.
struct SampleWeightParams {
  DType dtype = DType::kFloat32;
  int64_t V = 0, D = 0, B = 0;
  int64_t padding = -1;
  const int64_t* index = nullptr;    // [E]
  const int64_t* offsets = nullptr;  // [B + 1]
  const void* weight = nullptr;      // [V, D]
  const void* dy = nullptr;          // [B, D]
  void* dsample_weight = nullptr;    // [E] of dtype
};

namespace cpu {
// Each returns an entry whose index is no row of the table, or -1. The outputs are then incomplete.
int64_t embedding_forward(const EmbeddingParams&);
int64_t embedding_bag_forward(const EmbeddingBagParams&);
int64_t embedding_backward(const EmbeddingBackwardParams&);
int64_t embedding_sample_weights(const SampleWeightParams&);
// Winners must be rows or negative.
void embedding_max_backward(const EmbeddingMaxBackwardParams&);
}  // namespace cpu

}  // namespace fastnn
