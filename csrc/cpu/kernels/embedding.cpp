// Embeddings: rows are copied, added or compared as they lie in memory. A bag, and a row of the gradient, is
// a sum of scattered rows: four registers of columns at a time stay in place while the rows pass by, and each
// number is written once. The next rows are asked for ahead: their addresses are known, and no prefetcher
// guesses them.
#include "cpu/kernels/embedding.h"

#include "cpu/simd/moments.h"

namespace {

using namespace fastnn;
using cpu::SortedEntries;

constexpr int kColumns = 4;    // registers of columns
constexpr int64_t kAhead = 8;  // rows that are asked for ahead
constexpr int64_t kChain =
    64;  // rows that are added in a row, and so many of their sums: digits of long sums

FASTNN_INLINE bool is_row(int64_t index, int64_t rows) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(rows);
}

int64_t gather(const EmbeddingParams& p, int64_t begin, int64_t end) {
  int64_t bad = -1;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const T* weight = static_cast<const T*>(p.weight);
    T* y = static_cast<T*>(p.y);
    for (int64_t e = begin; e < end; ++e) {
      if (!is_row(p.index[e], p.V)) {
        bad = e;
        return;
      }
      if (e + kAhead < end && is_row(p.index[e + kAhead], p.V))
        __builtin_prefetch(weight + p.index[e + kAhead] * p.D);
      __builtin_memcpy(y + e * p.D, weight + p.index[e] * p.D, static_cast<size_t>(p.D) * sizeof(T));
    }
  });
  return bad;
}

// Rows of a table that are added up: row[k] * scale[k], but those that are `skip`.
template <class T>
struct Rows {
  const T* table;
  int64_t D;
  const int64_t* row;
  const Compute<T>* scale;  // or null
  int64_t count, skip;
};

// n registers of columns from d on, of which the last has `lanes`.
template <int n, class T>
struct ColumnSums {
  using V = Vec<Compute<T>>;
  V v[n];
  FASTNN_INLINE ColumnSums() {
    for (int j = 0; j < n; ++j) v[j] = V(0);
  }
  FASTNN_INLINE void add(const ColumnSums& other) {
    for (int j = 0; j < n; ++j) v[j] += other.v[j];
  }
  FASTNN_INLINE void add(const Rows<T>& r, int64_t first, int64_t last, int64_t d, int lanes) {
    for (int64_t k = first; k < last; ++k) {
      if (k + kAhead < r.count) __builtin_prefetch(r.table + r.row[k + kAhead] * r.D + d);
      if (r.row[k] == r.skip) continue;
      const T* x = r.table + r.row[k] * r.D + d;
      for (int j = 0; j < n; ++j) {
        const V numbers = load_n(x + j * V::N, j + 1 < n ? V::N : lanes);
        v[j] = r.scale ? fma(numbers, V(r.scale[k]), v[j]) : v[j] + numbers;
      }
    }
  }
};

template <int n, class T, class Store>
FASTNN_INLINE void add_rows(const Rows<T>& r, int64_t d, int lanes, const Store& store) {
  using V = Vec<Compute<T>>;
  ColumnSums<n, T> total;
  if (r.count <= kChain) {
    total.add(r, 0, r.count, d, lanes);
  } else {
    for (int64_t group = 0; group < r.count; group += kChain * kChain) {
      ColumnSums<n, T> sum;
      for (int64_t first = group; first < r.count && first < group + kChain * kChain; first += kChain) {
        ColumnSums<n, T> part;
        part.add(r, first, first + kChain < r.count ? first + kChain : r.count, d, lanes);
        sum.add(part);
      }
      total.add(sum);
    }
  }
  for (int j = 0; j < n; ++j) store(d + j * V::N, total.v[j], j + 1 < n ? V::N : lanes);
}

// The sums of the columns [left, right), given to store(column, register, lanes).
template <class T, class Store>
FASTNN_INLINE void add_columns(const Rows<T>& r, int64_t left, int64_t right, const Store& store) {
  using V = Vec<Compute<T>>;
  int64_t d = left;
  for (; d + kColumns * V::N <= right; d += kColumns * V::N) add_rows<kColumns>(r, d, V::N, store);
  for_each_vec<V>(right - d, [&](int64_t i, int lanes) { add_rows<1>(r, d + i, lanes, store); });
}

// The largest of each column, the first of equal ones; a NaN stays only where it is the first, as torch's.
template <class T>
void largest(const EmbeddingBagParams& p, int64_t b) {
  using V = Vec<Compute<T>>;
  const T* weight = static_cast<const T*>(p.weight);
  for_each_vec<V>(p.D, [&](int64_t d, int n) {
    V best(0);
    int64_t rows[V::N];
    for (int j = 0; j < n; ++j) rows[j] = -1;
    bool first = true;
    for (int64_t e = p.offsets[b]; e < p.offsets[b + 1]; ++e) {
      const int64_t row = p.index[e];
      if (row == p.padding) continue;
      const V x = load_n(weight + row * p.D + d, n);
      const auto wins = first ? V(0) == V(0) : x > best;
      best = select(wins, x, best);
      const uint32_t lanes = to_bits(wins);
      if (lanes != 0)
        for (int j = 0; j < n; ++j) rows[j] = (lanes >> j & 1) != 0 ? row : rows[j];
      first = false;
    }
    store_n(static_cast<T*>(p.y) + b * p.D + d, best, n);
    for (int j = 0; j < n; ++j) p.winner[b * p.D + d + j] = rows[j];
  });
}

int64_t bags(const EmbeddingBagParams& p, int64_t begin, int64_t end) {
  int64_t bad = -1;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = p.offsets[b], last = p.offsets[b + 1];
      int64_t count = 0;
      for (int64_t e = first; e < last; ++e) {
        if (!is_row(p.index[e], p.V)) {
          bad = e;
          return;
        }
        count += p.index[e] != p.padding;
      }
      if (p.mode == BagMode::kMax) {
        largest<T>(p, b);
        continue;
      }
      const bool mean = p.mode == BagMode::kMean;
      if (mean) p.size[b] = count;
      const Vec<C> divisor(mean && count > 0 ? static_cast<C>(count) : C(1));
      const C* scale = static_cast<const C*>(p.sample_weight);
      const Rows<T> r{static_cast<const T*>(p.weight), p.D,          p.index + first,
                      scale ? scale + first : nullptr, last - first, p.padding};
      T* y = static_cast<T*>(p.y) + b * p.D;
      add_columns(r, 0, p.D, [&](int64_t d, Vec<C> sum, int n) { store_n(y + d, sum / divisor, n); });
    }
  });
  return bad;
}

void gradient(const EmbeddingBackwardParams& p, const SortedEntries& s, int64_t begin, int64_t end,
              int64_t left, int64_t right) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    const C* scale = static_cast<const C*>(s.scale);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = row == 0 ? 0 : s.ends[row - 1], count = s.ends[row] - first;
      T* dw = static_cast<T*>(p.dw) + row * p.D;
      if (count == 0) {
        __builtin_memset(dw + left, 0, static_cast<size_t>(right - left) * sizeof(T));
        continue;
      }
      const Rows<T> r{static_cast<const T*>(p.dy),     p.D,   s.source + first,
                      scale ? scale + first : nullptr, count, -1};
      const Vec<C> divisor(p.by_frequency ? static_cast<C>(count) : C(1));
      add_columns(r, left, right, [&](int64_t d, Vec<C> sum, int n) { store_n(dw + d, sum / divisor, n); });
    }
  });
}

void max_gradient(const EmbeddingMaxBackwardParams& p, int64_t left, int64_t right) {
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    const T* dy = static_cast<const T*>(p.dy);
    T* dw = static_cast<T*>(p.dw);
    for (int64_t row = 0; row < p.V; ++row)
      __builtin_memset(dw + row * p.D + left, 0, static_cast<size_t>(right - left) * sizeof(T));
    for (int64_t b = 0; b < p.B; ++b) {
      for (int64_t d = left; d < right; ++d) {
        const int64_t row = p.winner[b * p.D + d];
        if (row < 0) continue;
        T& sum = dw[row * p.D + d];
        sum = from_compute<T>(to_compute(sum) + to_compute(dy[b * p.D + d]));
      }
    }
  });
}

int64_t sample_weights(const SampleWeightParams& p, int64_t begin, int64_t end) {
  int64_t bad = -1;
  visit(p.dtype, [&](auto element) {
    using T = decltype(element);
    using C = Compute<T>;
    using V = Vec<C>;
    T* found = static_cast<T*>(p.dsample_weight);
    for (int64_t b = begin; b < end; ++b) {
      const T* dy = static_cast<const T*>(p.dy) + b * p.D;
      for (int64_t e = p.offsets[b]; e < p.offsets[b + 1]; ++e) {
        if (!is_row(p.index[e], p.V)) {
          bad = e;
          return;
        }
        const T* x = static_cast<const T*>(p.weight) + p.index[e] * p.D;
        Sums<V> sums;
        if (p.index[e] != p.padding) {
          for_each_unrolled<V>(p.D, [&](int64_t d, int n, int slot) {
            sums.v[slot] = fma(load_n(dy + d, n), load_n(x + d, n), sums.v[slot]);
          });
        }
        found[e] = from_compute<T>(static_cast<C>(sums.total()));
      }
    }
  });
  return bad;
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const EmbeddingKernels embedding;
const EmbeddingKernels embedding = {gather, bags, gradient, max_gradient, sample_weights};
}  // namespace fastnn::cpu::FASTNN_ISA
