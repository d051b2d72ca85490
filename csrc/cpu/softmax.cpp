// Softmax: whole rows, or strips of columns, are handed to threads; a reduction never crosses threads.
#include "fastnn/softmax.h"

#include "cpu/kernels/softmax.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace fastnn::cpu {
namespace {

constexpr int kCost = 5;  // per element, in units of a copy's: an exponential and three passes

int64_t grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrain / kCost / std::max<int64_t>(1, elements_per_item));
}

// f(o, begin, end) for the strips [begin, end) of items [first, last) in [outer, strips].
template <class F>
void each_strip(int64_t inner, int64_t first, int64_t last, const F& f) {
  const int64_t strips = (inner + kSoftmaxColumns - 1) / kSoftmaxColumns;
  for (int64_t item = first; item < last; ++item) {
    const int64_t begin = item % strips * kSoftmaxColumns;
    f(item / strips, begin, std::min<int64_t>(inner, begin + kSoftmaxColumns));
  }
}

template <class Params>
int64_t strip_items(const Params& p) {
  return p.outer * ((p.inner + kSoftmaxColumns - 1) / kSoftmaxColumns);
}

}  // namespace

void softmax_forward(const SoftmaxParams& p) {
  if (p.length == 0) return;
  const auto& kernels = softmax_kernels();
  const int64_t element = p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  if (p.inner == 1) {
    parallel_for(p.outer, grain(p.length), [&](int64_t begin, int64_t end) {
      Scratch<char> exps(p.length * element);
      kernels.rows(p, begin, end, exps.data());
    });
    return;
  }
  parallel_for(strip_items(p), grain(p.length * std::min<int64_t>(p.inner, kSoftmaxColumns)),
               [&](int64_t first, int64_t last) {
                 Scratch<char> exps(p.length * kSoftmaxColumns * element);
                 each_strip(p.inner, first, last, [&](int64_t o, int64_t begin, int64_t end) {
                   kernels.columns(p, o, begin, end, exps.data());
                 });
               });
}

void softmax_backward(const SoftmaxBackwardParams& p) {
  if (p.length == 0) return;
  const auto& kernels = softmax_kernels();
  if (p.inner == 1) {
    parallel_for(p.outer, grain(p.length),
                 [&](int64_t begin, int64_t end) { kernels.rows_backward(p, begin, end); });
    return;
  }
  parallel_for(strip_items(p), grain(p.length * std::min<int64_t>(p.inner, kSoftmaxColumns)),
               [&](int64_t first, int64_t last) {
                 each_strip(p.inner, first, last, [&](int64_t o, int64_t begin, int64_t end) {
                   kernels.columns_backward(p, o, begin, end);
                 });
               });
}

}  // namespace fastnn::cpu
