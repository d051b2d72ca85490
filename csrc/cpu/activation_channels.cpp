// PReLU and GLU: chunks of fixed size, so that dw's partial sums don't depend on the number of threads.
#include "cpu/kernels/activation_channels.h"

#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int64_t kChunk = 4096;  // elements: x, dy and dx of a chunk share the first-level cache
constexpr int kPreluCost = 2, kGluCost = 5;

int64_t chunks(int64_t n) {
  return (n + kChunk - 1) / kChunk;
}

// f(row, begin, end, item) for items [first, last) of [rows, chunks of n].
template <class F>
void each_chunk(int64_t n, int64_t first, int64_t last, const F& f) {
  const int64_t per_row = chunks(n);
  for (int64_t item = first; item < last; ++item) {
    const int64_t begin = item % per_row * kChunk;
    f(item / per_row, begin, std::min(n, begin + kChunk), item);
  }
}

// As many elements as are worth a thread, in items of n elements.
int64_t grain(int64_t n, int cost) {
  return std::max<int64_t>(1, kGrain / cost / std::max<int64_t>(1, n));
}

// A single weight makes one row of the whole.
template <class Params>
Params flattened(Params p) {
  if (p.channels == 1) p.inner *= p.outer, p.outer = 1;
  return p;
}

int64_t rows_per_block(int64_t channels) {
  return std::max<int64_t>(1, kChunk / channels);
}

}  // namespace

void prelu_forward(const PreluParams& params) {
  const PreluParams p = flattened(params);
  const auto& kernels = activation_channels_kernels();
  if (p.inner == 1 && p.channels > 1) {
    parallel_for(p.outer, grain(p.channels, kPreluCost),
                 [&](int64_t begin, int64_t end) { kernels.prelu_channels(p, begin, end); });
    return;
  }
  parallel_for(p.outer * p.channels * chunks(p.inner), grain(std::min(kChunk, p.inner), kPreluCost),
               [&](int64_t first, int64_t last) {
                 each_chunk(p.inner, first, last, [&](int64_t row, int64_t begin, int64_t end, int64_t) {
                   kernels.prelu_row(p, row, begin, end);
                 });
               });
}

void prelu_backward(const PreluBackwardParams& params) {
  const PreluBackwardParams p = flattened(params);
  const auto& kernels = activation_channels_kernels();
  std::vector<double> dw(p.channels, 0.0);
  if (p.inner == 1 && p.channels > 1) {
    const int64_t rows = rows_per_block(p.channels), blocks = (p.outer + rows - 1) / rows;
    Scratch<double> partial(blocks * p.channels);
    parallel_for(blocks, grain(rows * p.channels, kPreluCost), [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        kernels.prelu_channels_backward(p, b * rows, std::min(p.outer, (b + 1) * rows),
                                        partial.data() + b * p.channels);
      }
    });
    for (int64_t i = 0; i < blocks * p.channels; ++i) dw[i % p.channels] += partial[i];
  } else {
    const int64_t per_row = chunks(p.inner), items = p.outer * p.channels * per_row;
    Scratch<double> partial(items);
    parallel_for(items, grain(std::min(kChunk, p.inner), kPreluCost), [&](int64_t first, int64_t last) {
      each_chunk(p.inner, first, last, [&](int64_t row, int64_t begin, int64_t end, int64_t item) {
        partial[item] = kernels.prelu_row_backward(p, row, begin, end);
      });
    });
    for (int64_t i = 0; i < items; ++i) dw[i / per_row % p.channels] += partial[i];
  }
  if (p.dw) kernels.prelu_store_dw(p, dw.data());
}

void glu_forward(const GluParams& p) {
  const auto& kernels = activation_channels_kernels();
  parallel_for(
      p.outer * chunks(p.half), grain(std::min(kChunk, p.half), kGluCost), [&](int64_t first, int64_t last) {
        each_chunk(p.half, first, last,
                   [&](int64_t o, int64_t begin, int64_t end, int64_t) { kernels.glu(p, o, begin, end); });
      });
}

void glu_backward(const GluBackwardParams& p) {
  const auto& kernels = activation_channels_kernels();
  parallel_for(p.outer * chunks(p.half), grain(std::min(kChunk, p.half), kGluCost),
               [&](int64_t first, int64_t last) {
                 each_chunk(p.half, first, last, [&](int64_t o, int64_t begin, int64_t end, int64_t) {
                   kernels.glu_backward(p, o, begin, end);
                 });
               });
}

}  // namespace fastnn::cpu
