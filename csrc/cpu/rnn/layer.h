// What forward and backward share: where rows lie, in which order steps come, products and packed weights.
#pragma once
#include "cpu/by_type.h"
#include "cpu/gemm.h"
#include "cpu/kernels/rnn.h"
#include "cpu/rnn/team.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {

template <class T>
class RnnLayer {
 public:
  explicit RnnLayer(const RnnShape& shape)
      : shape(shape), blocks(rnn_blocks(shape.cell)), ops(of_type<T>(rnn_kernels())) {}

  const RnnShape& shape;
  const RnnBlocks blocks;
  const RnnOps<T>& ops;

  int64_t registers(int64_t units) const { return (units + ops.lanes - 1) / ops.lanes; }
  int64_t packed_size(int64_t k, int64_t units, int64_t gates) const {
    return gates * registers(units) * rnn_register_stride(k, ops.lanes);
  }
  // The matrix w(p, column) = w[p * row + column * column_stride], `gates` times `units` columns.
  void pack(const void* w, int64_t row, int64_t column, int64_t k, int64_t units, int64_t gates,
            T* packed) const {
    const int64_t count = gates * registers(units);
    parallel_for(count, 1 + kGrain / (k * ops.lanes), [&](int64_t first, int64_t last) {
      ops.pack({.w = static_cast<const T*>(w),
                .row = row,
                .column = column,
                .k = k,
                .H = units,
                .gates = gates,
                .first = first,
                .last = last,
                .packed = packed});
    });
  }

  RnnWork work() const {
    return {.directions = shape.D,
            .sequences = shape.N,
            .steps = shape.T,
            .registers = registers(shape.H),
            .weight_bytes = blocks.gates * shape.H * shape.P * int64_t{sizeof(T)},
            .multiplies = shape.rows * blocks.gates * shape.H * shape.P};
  }

  // Steps in the order of a direction, and how many sequences step i of it takes over from the step before;
  // the other ones begin there.
  int64_t step(int64_t direction, int64_t i) const { return direction == 0 ? i : shape.T - 1 - i; }
  int64_t carried(int64_t direction, int64_t i) const {
    return i == 0 ? 0 : std::min(shape.active[step(direction, i)], shape.active[step(direction, i - 1)]);
  }

  RnnPart<T> part(const RnnWorker& w, int64_t rows, int64_t units) const {
    const int64_t n = registers(units);
    return {rows, n * w.part / w.parts, n * (w.part + 1) / w.parts, units};
  }
};

// The rows of a worker's sequences from its own `from`-th on, in a matrix of `width` columns whose row 0
// belongs to sequence 0. Null stays null.
template <class E>
RnnRows<E> own_rows(const RnnWorker& w, E* data, int64_t width, int64_t from = 0) {
  return {data ? data + (w.sequence + from * w.sequences) * width : nullptr, w.sequences * width};
}

}  // namespace fastnn::cpu
