// Embeddings, split over threads: entries, bags, and for the gradient rows and columns of the table.
//
// The gradient sorts the entries by their rows first (counting sort, so those of a row stay in their order);
// then each row is added up by one thread and written once. No thread looks at entries that are not its own,
// no row is set to zero before, and the order of additions depends on the indices alone.
#include "fastnn/embedding.h"

#include <atomic>

#include "cpu/kernels/embedding.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kColumnBlock = 128;  // columns of a row that one thread adds up: a row of it is 8 lines
constexpr int64_t kRowBlocks = 64;     // of about as many entries each: threads are even whatever is frequent
constexpr int64_t kMaxColumns = 16;    // of kMax: one line, so that threads don't share any

// f(begin, end), which returns an entry or -1, in parallel; the lowest of those found.
template <class F>
int64_t first_bad(int64_t n, int64_t grain, const F& f) {
  std::atomic<int64_t> found{-1};
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    const int64_t bad = f(begin, end);
    int64_t seen = found.load();
    while (bad >= 0 && (seen < 0 || bad < seen) && !found.compare_exchange_weak(seen, bad)) {
    }
  });
  return found;
}

int64_t grain_of(int64_t numbers) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, numbers));
}

// Fills the three arrays of SortedEntries; returns a bad entry, or -1.
template <class C>
int64_t sort_entries(const EmbeddingBackwardParams& p, int64_t* ends, int64_t* source, C* scale) {
  std::fill_n(ends, p.V, 0);
  for (int64_t e = 0; e < p.E; ++e) {
    if (static_cast<uint64_t>(p.index[e]) >= static_cast<uint64_t>(p.V)) return e;
    ends[p.index[e]] += p.index[e] != p.padding;
  }
  for (int64_t row = 0, sum = 0; row < p.V; ++row) {
    const int64_t begin = sum;
    sum += ends[row];
    ends[row] = begin;
  }
  const C* sample_weight = static_cast<const C*>(p.sample_weight);
  const auto place = [&](int64_t e, int64_t row_of_dy) {
    if (p.index[e] == p.padding) return;
    const int64_t k = ends[p.index[e]]++;
    source[k] = row_of_dy;
    if (scale == nullptr) return;
    scale[k] = sample_weight ? sample_weight[e] : C(1);
    if (p.size) scale[k] /= static_cast<C>(p.size[row_of_dy]);
  };
  if (p.offsets == nullptr) {
    for (int64_t e = 0; e < p.E; ++e) place(e, e);
  } else {
    for (int64_t b = 0; b < p.B; ++b)
      for (int64_t e = p.offsets[b]; e < p.offsets[b + 1]; ++e) place(e, b);
  }
  return -1;
}

template <class C>
int64_t backward(const EmbeddingBackwardParams& p) {
  const bool scaled = p.sample_weight != nullptr || p.size != nullptr;
  const Scratch<int64_t> ends(p.V), source(p.E);
  const Scratch<C> scale(scaled ? p.E : 0);
  const int64_t bad = sort_entries(p, ends.data(), source.data(), scaled ? scale.data() : nullptr);
  if (bad >= 0) return bad;
  const SortedEntries sorted{ends.data(), source.data(), scaled ? scale.data() : nullptr};

  // The first row at which `rows and entries so far` reaches a share of all.
  const int64_t work = p.V + ends[p.V - 1], blocks = std::min(kRowBlocks, p.V);
  const auto row_at = [&](int64_t block) {
    const int64_t target = work * block / blocks;
    int64_t low = 0, high = p.V;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      (middle + 1 + ends[middle] <= target ? low = middle + 1 : high = middle);
    }
    return low;
  };
  const int64_t column_blocks = (p.D + kColumnBlock - 1) / kColumnBlock;
  const int64_t numbers = work / blocks * std::min(p.D, kColumnBlock);
  parallel_for(column_blocks * blocks, grain_of(numbers), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last;) {
      // Neighbouring blocks of rows as one.
      const int64_t column = item / blocks, stop = std::min(last, (column + 1) * blocks);
      const int64_t left = column * kColumnBlock, right = std::min(p.D, left + kColumnBlock);
      const int64_t end = stop % blocks == 0 ? p.V : row_at(stop % blocks);
      embedding_kernels().gradient(p, sorted, row_at(item % blocks), end, left, right);
      item = stop;
    }
  });
  return -1;
}

}  // namespace

int64_t embedding_forward(const EmbeddingParams& p) {
  return first_bad(p.E, grain_of(p.D),
                   [&](int64_t begin, int64_t end) { return embedding_kernels().gather(p, begin, end); });
}

int64_t embedding_bag_forward(const EmbeddingBagParams& p) {
  const int64_t entries = p.offsets[p.B] - p.offsets[0];
  return first_bad(p.B, grain_of(p.D * (1 + entries / std::max<int64_t>(1, p.B))),
                   [&](int64_t begin, int64_t end) { return embedding_kernels().bags(p, begin, end); });
}

int64_t embedding_backward(const EmbeddingBackwardParams& p) {
  return p.dtype == DType::kFloat64 ? backward<double>(p) : backward<float>(p);
}

void embedding_max_backward(const EmbeddingMaxBackwardParams& p) {
  const int64_t blocks = (p.D + kMaxColumns - 1) / kMaxColumns;
  parallel_for(blocks, grain_of((p.V + p.B) * kMaxColumns), [&](int64_t begin, int64_t end) {
    embedding_kernels().max_gradient(p, begin * kMaxColumns, std::min(p.D, end * kMaxColumns));
  });
}

int64_t embedding_sample_weights(const SampleWeightParams& p) {
  const int64_t entries = p.offsets[p.B] - p.offsets[0];
  return first_bad(p.B, grain_of(p.D * (1 + entries / std::max<int64_t>(1, p.B))),
                   [&](int64_t b, int64_t e) { return embedding_kernels().sample_weights(p, b, e); });
}

}  // namespace fastnn::cpu
