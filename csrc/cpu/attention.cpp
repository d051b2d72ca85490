// Attention by tiles of queries and keys: each matrix product is the serial one of gemm.h, what lies between
// them one sweep of kernels/attention.cpp over a tile that is still in cache.
//
//   forward:  few keys: kernels/attention_head.h. Otherwise for each block of queries, over blocks of keys:
//   scores = q k^T; softmax; y += scores v backward: scores = q k^T, slopes = dy v^T; then
//             dv += scores^T dy, dk += slopes^T q, dq += slopes k
//
// Backward in one pass where there are heads enough to keep the threads busy; otherwise dk and dv by blocks
// of keys and dq by blocks of queries, each with tiles of its own. Either way every sum runs over the same
// tiles in the same order, so the bits are the same.
#include "fastnn/attention.h"

#include <algorithm>

#include "cpu/by_type.h"
#include "cpu/gemm.h"
#include "cpu/kernels/attention.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "fastnn/dropout.h"

namespace fastnn::cpu {
namespace {

// A tile of floats is 256 KB: two of them fit an L2 of 1 MB. 64 to 192 queries by 256 or 512 keys are within
// 3% of each other; 128 keys cost 10%, since y is rescaled and the products are split more often.
constexpr int64_t kQueries = 128, kKeys = 512;
static_assert(kKeys % kPhiloxBatch == 0);
// So few keys go through kernels/attention_head.h: 12 rows of scores are 24 KB of an L1 of 32 or 48.
// Backward, which keeps the rows of all queries, gains nothing from 256 keys on.
constexpr int64_t kShort = 512, kShortBackward = 256;
// Multiply-adds that are worth waking a thread for, as in gemm.cpp.
constexpr int64_t kThreadWork = 1 << 17;

struct Range {
  int64_t begin, size;
};
Range block_of(int64_t block, int64_t length, int64_t n) {
  return {block * length, std::min(length, n - block * length)};
}
int64_t blocks_of(int64_t length, int64_t n) {
  return (n + length - 1) / length;
}

template <class T>
struct Matrix {
  T* data;
  int64_t row;  // stride; columns lie side by side
};
template <class T>
Matrix<T> matrix(const AttentionView& view, int64_t n, int64_t h, int64_t l) {
  return {static_cast<T*>(view.data) + n * view.n + h * view.h + l * view.l, view.l};
}

template <class T>
class Attention {
 public:
  explicit Attention(const AttentionInputs& in) : in_(in), shape_(in.shape) {}

  Range queries(int64_t block) const { return block_of(block, kQueries, shape_.L); }
  Range keys(int64_t block) const { return block_of(block, kKeys, shape_.S); }
  int64_t query_blocks() const { return blocks_of(kQueries, shape_.L); }
  int64_t key_blocks() const { return blocks_of(kKeys, shape_.S); }
  // The part of these keys that some of these queries see; it may be empty.
  Range seen(Range q, Range k) const {
    const int64_t size = in_.causal ? std::min(k.size, q.begin + q.size - k.begin) : k.size;
    return {k.begin, std::max<int64_t>(0, size)};
  }
  int64_t group() const { return shape_.H / shape_.HK; }

  Matrix<T> q(int64_t n, int64_t h, Range r) const { return matrix<T>(in_.q, n, h, r.begin); }
  Matrix<T> k(int64_t n, int64_t h, Range r) const { return matrix<T>(in_.k, n, h / group(), r.begin); }
  Matrix<T> v(int64_t n, int64_t h, Range r) const { return matrix<T>(in_.v, n, h / group(), r.begin); }

  AttentionTile<T> tile(int64_t n, int64_t h, Range q, Range k) const {
    AttentionTile<T> t;
    t.rows = q.size;
    t.columns = t.stride = k.size;
    t.scale = static_cast<T>(in_.scale);
    t.visible = in_.causal ? q.begin + 1 - k.begin : k.size;
    t.visible_step = in_.causal ? 1 : 0;
    if (in_.mask.data) {
      const int64_t at = n * in_.mask.n + h * in_.mask.h + q.begin * in_.mask.l + k.begin;
      t.mask = static_cast<const char*>(in_.mask.data) + at * (in_.mask_is_bool ? 1 : int64_t{sizeof(T)});
      t.mask_stride = in_.mask.l;
      t.mask_is_bool = in_.mask_is_bool;
    }
    if (in_.p > 0) {
      t.drops = true;
      t.stream = {in_.seed, in_.offset};
      t.decision_stride = attention_row_decisions(shape_.S);
      t.decision = ((n * shape_.H + h) * shape_.L + q.begin) * t.decision_stride + k.begin;
      t.threshold = dropout_threshold(in_.p);
      t.keep = static_cast<T>(1 / (1 - in_.p));
    }
    return t;
  }

  // c [rows of a, rows of b] = a b^T, both with `depth` columns.
  static void product_nt(Matrix<T> a, int64_t m, Matrix<T> b, int64_t n, int64_t depth, T* c) {
    gemm_serial(GemmParams<T>{.m = m,
                              .n = n,
                              .k = depth,
                              .a = a.data,
                              .a_row = a.row,
                              .a_col = 1,
                              .b = b.data,
                              .b_row = 1,
                              .b_col = b.row,
                              .c = c,
                              .c_row = n});
  }

 private:
  const AttentionInputs& in_;
  const AttentionShape& shape_;
};

// c [m, n] (+)= a b, with a [m, depth] in tile order, or its transpose.
template <class T>
void product(const T* a, int64_t a_row, int64_t a_col, int64_t m, int64_t depth, Matrix<T> b, int64_t n,
             Matrix<T> c, bool accumulate) {
  gemm_serial(GemmParams<T>{.m = m,
                            .n = n,
                            .k = depth,
                            .a = a,
                            .a_row = a_row,
                            .a_col = a_col,
                            .b = b.data,
                            .b_row = b.row,
                            .b_col = 1,
                            .c = c.data,
                            .c_row = c.row,
                            .accumulate = accumulate});
}

template <class T>
void clear(Matrix<T> m, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) std::fill_n(m.data + r * m.row, columns, T(0));
}

int64_t grain(int64_t work_per_task) {
  return std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, work_per_task));
}

// --- forward ---------------------------------------------------------------------------------------------

int64_t padded_columns(int64_t columns) {
  return (columns + kHeadPadding - 1) / kHeadPadding * kHeadPadding;
}

// All keys of a head at once, see kernels/attention_head.h; y and scratch are the caller's.
template <class T>
AttentionHead<T> short_head(const AttentionInputs& in, int64_t n, int64_t h, Range q, Range k, Matrix<T> y,
                            const void* lse, T* keys, T* scores) {
  const AttentionShape& s = in.shape;
  const Attention<T> at(in);
  const Matrix<T> queries = at.q(n, h, q), own_keys = at.k(n, h, k), values = at.v(n, h, k);
  return {.tile = at.tile(n, h, q, k),
          .E = s.E,
          .EV = s.EV,
          .q = queries.data,
          .k = own_keys.data,
          .v = values.data,
          .q_row = queries.row,
          .k_row = own_keys.row,
          .v_row = values.row,
          .y = y.data,
          .y_row = y.row,
          .lse = static_cast<T*>(const_cast<void*>(lse)) + (n * s.H + h) * s.L + q.begin,
          .padded = padded_columns(k.size),
          .keys = keys,
          .scores = scores};
}

template <class T>
void forward_short(const AttentionParams& p, int64_t n, int64_t h, Range q) {
  const Range k = Attention<T>(p.in).seen(q, {0, p.in.shape.S});
  const int64_t padded = padded_columns(k.size);
  const Scratch<T> keys(padded * p.in.shape.E), scores(padded * kHeadRows);
  of_type<T>(attention_kernels())
      .head(short_head(p.in, n, h, q, k, matrix<T>(p.y, n, h, q.begin), p.lse, keys.data(), scores.data()));
}

template <class T>
void forward_block(const AttentionParams& p, int64_t n, int64_t h, Range q) {
  const AttentionShape& s = p.in.shape;
  const Attention<T> at(p.in);
  const auto& ops = of_type<T>(attention_kernels());
  const Scratch<T> scores(q.size * std::min(kKeys, s.S)), peak(q.size), sum(q.size);
  const Matrix<T> y = matrix<T>(p.y, n, h, q.begin);
  for (int64_t block = 0; block < at.key_blocks(); ++block) {
    const Range k = at.seen(q, at.keys(block));
    if (k.size == 0) break;
    at.product_nt(at.q(n, h, q), q.size, at.k(n, h, k), k.size, s.E, scores.data());
    ops.softmax(at.tile(n, h, q, k), scores.data(), peak.data(), sum.data(), y.data, y.row, s.EV, block == 0);
    product(scores.data(), k.size, 1, q.size, k.size, at.v(n, h, k), s.EV, y, block > 0);
  }
  ops.finish(q.size, peak.data(), sum.data(), y.data, y.row, s.EV,
             static_cast<T*>(p.lse) + (n * s.H + h) * s.L + q.begin);
}

template <class T>
void forward(const AttentionParams& p) {
  const AttentionShape& s = p.in.shape;
  const Attention<T> at(p.in);
  const int64_t blocks = at.query_blocks();
  const int64_t work = std::min(kQueries, s.L) * s.S * (s.E + s.EV);
  parallel_for(s.N * s.H * blocks, grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / blocks, i = task % blocks;
      // From both ends to the middle: with a causal mask neighbours together have the same work.
      const int64_t block = i % 2 == 0 ? i / 2 : blocks - 1 - i / 2;
      const auto& run = s.S <= kShort ? forward_short<T> : forward_block<T>;
      run(p, head / s.H, head % s.H, at.queries(block));
    }
  });
}

// --- backward --------------------------------------------------------------------------------------------

// The gradients that one tile adds to, and whether it is the first one to do so.
struct Wants {
  bool queries, keys;
  bool first_of_queries, first_of_keys;
};

template <class T>
void backward_short(const AttentionBackwardParams& p, int64_t n, int64_t h, Range q, Range k, Wants wants) {
  const AttentionShape& s = p.in.shape;
  const int64_t padded = padded_columns(k.size), hk = h / Attention<T>(p.in).group();
  const Scratch<T> keys(padded * s.E), values(padded * s.EV), scores(padded * q.size),
      slopes(padded * q.size);
  const Matrix<T> dy = matrix<T>(p.dy, n, h, q.begin), dq = matrix<T>(p.dq, n, h, q.begin),
                  dk = matrix<T>(p.dk, n, hk, k.begin), dv = matrix<T>(p.dv, n, hk, k.begin);
  of_type<T>(attention_kernels())
      .head_backward({.head = short_head(p.in, n, h, q, k, matrix<T>(p.y, n, h, q.begin), p.lse, keys.data(),
                                         scores.data()),
                      .dy = dy.data,
                      .dq = wants.queries && p.dq.data ? dq.data : nullptr,
                      .dk = wants.keys && p.dk.data ? dk.data : nullptr,
                      .dv = wants.keys && p.dv.data ? dv.data : nullptr,
                      .dy_row = dy.row,
                      .dq_row = dq.row,
                      .dk_row = dk.row,
                      .dv_row = dv.row,
                      .add_queries = !wants.first_of_queries,
                      .add_keys = !wants.first_of_keys,
                      .values = values.data(),
                      .slopes = slopes.data()});
}

template <class T>
void backward_tile(const AttentionBackwardParams& p, int64_t n, int64_t h, Range q, Range k, Wants wants) {
  const AttentionShape& s = p.in.shape;
  if (s.S <= kShortBackward) return backward_short<T>(p, n, h, q, k, wants);
  const Attention<T> at(p.in);
  const auto& ops = of_type<T>(attention_kernels());
  const Scratch<T> scores(q.size * k.size), slopes(q.size * k.size), delta(q.size);
  const Matrix<T> y = matrix<T>(p.y, n, h, q.begin), dy = matrix<T>(p.dy, n, h, q.begin);
  const int64_t hk = h / at.group();
  at.product_nt(at.q(n, h, q), q.size, at.k(n, h, k), k.size, s.E, scores.data());
  at.product_nt(dy, q.size, at.v(n, h, k), k.size, s.EV, slopes.data());
  ops.delta(q.size, y.data, y.row, dy.data, dy.row, s.EV, delta.data());
  ops.backward(at.tile(n, h, q, k), scores.data(), slopes.data(),
               static_cast<const T*>(p.lse) + (n * s.H + h) * s.L + q.begin, delta.data());
  if (wants.keys && p.dv.data) {
    product(scores.data(), 1, k.size, k.size, q.size, dy, s.EV, matrix<T>(p.dv, n, hk, k.begin),
            !wants.first_of_keys);
  }
  if (wants.keys && p.dk.data) {
    product(slopes.data(), 1, k.size, k.size, q.size, at.q(n, h, q), s.E, matrix<T>(p.dk, n, hk, k.begin),
            !wants.first_of_keys);
  }
  if (wants.queries && p.dq.data) {
    product(slopes.data(), k.size, 1, q.size, k.size, at.k(n, h, k), s.E, matrix<T>(p.dq, n, h, q.begin),
            !wants.first_of_queries);
  }
}

// All tiles of one block of keys, of each head that shares them.
template <class T>
void backward_keys(const AttentionBackwardParams& p, int64_t n, int64_t hk, Range k, bool queries_too) {
  const AttentionShape& s = p.in.shape;
  const Attention<T> at(p.in);
  if (p.in.causal) {  // tiles of different heights
    if (p.dk.data) clear(matrix<T>(p.dk, n, hk, k.begin), k.size, s.E);
    if (p.dv.data) clear(matrix<T>(p.dv, n, hk, k.begin), k.size, s.EV);
  }
  bool first = !p.in.causal;
  for (int64_t h = hk * at.group(); h < (hk + 1) * at.group(); ++h)
    for (int64_t i = 0; i < at.query_blocks(); ++i) {
      const Range q = at.queries(i), seen = at.seen(q, k);
      if (seen.size == 0) continue;
      backward_tile<T>(p, n, h, q, seen, {queries_too, true, k.begin == 0, first});
      first = false;
    }
}

template <class T>
void backward_queries(const AttentionBackwardParams& p, int64_t n, int64_t h, Range q) {
  const Attention<T> at(p.in);
  for (int64_t j = 0; j < at.key_blocks(); ++j) {
    const Range k = at.seen(q, at.keys(j));
    if (k.size > 0) backward_tile<T>(p, n, h, q, k, {true, false, j == 0, false});
  }
}

template <class T>
void backward(const AttentionBackwardParams& p) {
  const AttentionShape& s = p.in.shape;
  const Attention<T> at(p.in);
  const int64_t heads = s.N * s.HK, key_blocks = at.key_blocks(), query_blocks = at.query_blocks();
  const int64_t work = s.L * s.S * (s.E + s.EV) * 2;  // of a head
  const bool keys = p.dk.data || p.dv.data;
  if (keys && (heads >= thread_limit() || (key_blocks == 1 && query_blocks == 1))) {
    parallel_for(heads, grain(work * at.group()), [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head)
        for (int64_t j = 0; j < key_blocks; ++j)
          backward_keys<T>(p, head / s.HK, head % s.HK, at.keys(j), p.dq.data != nullptr);
    });
    return;
  }
  if (keys) {
    parallel_for(heads * key_blocks, grain(work * at.group() / key_blocks), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task / key_blocks;
        backward_keys<T>(p, head / s.HK, head % s.HK, at.keys(task % key_blocks), false);
      }
    });
  }
  if (p.dq.data == nullptr) return;
  parallel_for(s.N * s.H * query_blocks, grain(work / query_blocks), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / query_blocks;
      backward_queries<T>(p, head / s.H, head % s.H, at.queries(task % query_blocks));
    }
  });
}

}  // namespace

void attention_forward(const AttentionParams& p) {
  p.in.dtype == DType::kFloat64 ? forward<double>(p) : forward<float>(p);
}
void attention_backward(const AttentionBackwardParams& p) {
  p.in.dtype == DType::kFloat64 ? backward<double>(p) : backward<float>(p);
}

}  // namespace fastnn::cpu
