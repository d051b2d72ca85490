// What attention does to a tile of scores between its matrix products.
#pragma once
#include <cstdint>

#include "cpu/capability.h"
#include "fastnn/philox.h"

namespace fastnn::cpu {

// Scores of `rows` queries against `columns` keys, as q k^T left them.
template <class T>
struct AttentionTile {
  int64_t rows = 0, columns = 0;
  int64_t stride = 0;  // between rows of the tile
  T scale = 1;
  int64_t visible = 0;  // row r sees the first visible + r * visible_step columns, within [0, columns]
  int64_t visible_step = 0;
  const void* mask = nullptr;  // element (r, j) at mask[r * mask_stride + j]; bool or T, or null
  int64_t mask_stride = 0;
  bool mask_is_bool = false;
  bool drops = false;
  PhiloxStream stream{};
  int64_t decision = 0,
          decision_stride = 0;  // element (r, j): decision + r * decision_stride + j, whole batches
  uint32_t threshold = 0;
  T keep = 1;  // 1 / (1 - p)
};

// Some queries of one head and all its keys, few enough for rows of scores to stay in L1.
template <class T>
struct AttentionHead {
  AttentionTile<T> tile;  // rows: queries; columns: keys; no stride
  int64_t E = 0, EV = 0;
  const T *q = nullptr, *k = nullptr, *v = nullptr;  // [rows, E], [columns, E], [columns, EV]
  int64_t q_row = 0, k_row = 0, v_row = 0;           // strides between rows
  T* y = nullptr;                                    // [rows, EV]
  int64_t y_row = 0;
  T* lse = nullptr;  // [rows]
  // Scratch; `padded` is columns rounded up to a multiple of kHeadPadding.
  int64_t padded = 0;
  T* keys = nullptr;    // [E, padded]
  T* scores = nullptr;  // [kHeadRows, padded]
};

// Its backward: scores, y and lse of `head` are read, scores has a row for each query.
template <class T>
struct AttentionHeadBackward {
  AttentionHead<T> head;
  const T* dy = nullptr;                          // [rows, EV]
  T *dq = nullptr, *dk = nullptr, *dv = nullptr;  // [rows, E], [columns, E], [columns, EV], or null
  int64_t dy_row = 0, dq_row = 0, dk_row = 0, dv_row = 0;
  bool add_queries = false, add_keys = false;  // to dq; to dk and dv
  T* values = nullptr;                         // scratch [EV, padded]
  T* slopes = nullptr;                         // scratch [rows, padded]
};
constexpr int64_t kHeadPadding = 16,
                  kHeadRows = 12;  // registers are no longer; rows that go together at most

template <class T>
struct AttentionOps {
  // y = softmax(scale q k^T + mask) v, dropped, and lse.
  void (*head)(const AttentionHead<T>&);
  void (*head_backward)(const AttentionHeadBackward<T>&);
  // Scores become exp(score - peak), dropped; running maximum and sum of each row follow, and y [rows,
  // features], the sum over earlier tiles, is rescaled to the new maximum.
  void (*softmax)(const AttentionTile<T>&, T* scores, T* peak, T* sum, T* y, int64_t y_row, int64_t features,
                  bool first);
  // y /= sum, lse = peak + log(sum).
  void (*finish)(int64_t rows, const T* peak, const T* sum, T* y, int64_t y_row, int64_t features, T* lse);
  // delta = sum(y * dy) of each row.
  void (*delta)(int64_t rows, const T* y, int64_t y_row, const T* dy, int64_t dy_row, int64_t features,
                T* delta);
  // Scores become the dropped probabilities z p, and dy v^T in `slopes` the gradient of q k^T, which is
  // scale p (z dy v^T - delta); z = 0 or 1 / (1 - p).
  void (*backward)(const AttentionTile<T>&, T* scores, T* slopes, const T* lse, const T* delta);
};

struct AttentionKernels {
  AttentionOps<float> float32;
  AttentionOps<double> float64;
};

}  // namespace fastnn::cpu

FASTNN_DECLARE_KERNELS(AttentionKernels, attention)
