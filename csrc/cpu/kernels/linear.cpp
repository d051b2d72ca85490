// Column sums in two levels: groups of rows are summed on their own, then the groups, so that the rounding
// error grows like the group and the number of groups, not like the number of rows.
#include "cpu/kernels/linear.h"

#include "cpu/simd/vec.h"

namespace {

constexpr int64_t kGroup = 32;  // rows; the square root of the rows in a caller's chunk

// f(i) over the rows [0, n), summed in groups.
template <class Sum, class F>
FASTNN_INLINE Sum grouped_sum(int64_t n, Sum zero, const F& f) {
  Sum total = zero;
  for (int64_t i = 0; i < n; i += kGroup) {
    const int64_t end = n - i < kGroup ? n : i + kGroup;
    Sum sum = zero;
    for (int64_t r = i; r < end; ++r) sum += f(r);
    total += sum;
  }
  return total;
}

// Four registers side by side: four chains of additions hide the latency, and a row's cache lines are used
// whole.
template <class T>
struct Wide {
  Vec<T> v[4];
  FASTNN_INLINE Wide& operator+=(const Wide& other) {
    for (int i = 0; i < 4; ++i) v[i] += other.v[i];
    return *this;
  }
};

template <class T>
void column_sums(const T* x, int64_t row, int64_t col, int64_t n, int64_t k, T* out) {
  using V = Vec<T>;
  if (col != 1) {
    for (int64_t j = 0; j < k; ++j)
      out[j] = grouped_sum(n, T(0), [&](int64_t i) { return x[i * row + j * col]; });
    return;
  }
  int64_t j = 0;
  const V zero(T(0));
  for (; j + 4 * V::N <= k; j += 4 * V::N) {
    const Wide<T> sum = grouped_sum(n, Wide<T>{{zero, zero, zero, zero}}, [&](int64_t i) {
      const T* p = x + i * row + j;
      return Wide<T>{{load(p), load(p + V::N), load(p + 2 * V::N), load(p + 3 * V::N)}};
    });
    for (int v = 0; v < 4; ++v) store(out + j + v * V::N, sum.v[v]);
  }
  for_each_vec<V>(k - j, [&](int64_t offset, int lanes) {
    const T* p = x + j + offset;
    store_n(out + j + offset, grouped_sum(n, zero, [&](int64_t i) { return load_n(p + i * row, lanes); }),
            lanes);
  });
}

}  // namespace

namespace fastnn::cpu::FASTNN_ISA {
extern const LinearKernels linear;
const LinearKernels linear = {column_sums<float>, column_sums<double>};
}  // namespace fastnn::cpu::FASTNN_ISA
