// The matrix product against a loop in long double: every stride, every edge of the tiles, exact bounds, and
// the same bits for any number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cpu/gemm.h"
#include "harness.h"

using namespace fastnn::cpu;
using namespace fastnn::testing;

namespace {

// How a matrix lies in memory: rows or columns contiguous, padded, or with a gap after each element.
enum class Layout { kRows, kColumns, kPaddedRows, kPaddedColumns, kGaps };
constexpr Layout kLayouts[] = {Layout::kRows, Layout::kColumns, Layout::kPaddedRows, Layout::kPaddedColumns,
                               Layout::kGaps};

template <class T>
struct Matrix {
  int64_t rows, cols, row, col;
  Buffer<T> buffer;

  Matrix(int64_t rows, int64_t cols, Layout layout, Place place, uint64_t seed)
      : rows(rows),
        cols(cols),
        row(row_stride(rows, cols, layout)),
        col(col_stride(rows, layout)),
        buffer(rows * cols == 0 ? 0 : (rows - 1) * row + (cols - 1) * col + 1, place) {
    buffer.fill_random(seed);
  }
  static int64_t row_stride(int64_t, int64_t cols, Layout layout) {
    switch (layout) {
      case Layout::kRows: return cols;
      case Layout::kPaddedRows: return cols + 3;
      case Layout::kGaps: return 2 * cols + 1;
      default: return 1;
    }
  }
  static int64_t col_stride(int64_t rows, Layout layout) {
    switch (layout) {
      case Layout::kColumns: return rows;
      case Layout::kPaddedColumns: return rows + 3;
      case Layout::kGaps: return 2;
      default: return 1;
    }
  }
  double at(int64_t i, int64_t j) const { return to_double(buffer[i * row + j * col]); }
};

enum class Epilogue { kPlain, kAccumulate, kBiasRow, kBiasCol, kBothBiases };

struct Sizes {
  int64_t m, n, k;
  std::string text() const {
    return "m " + std::to_string(m) + " n " + std::to_string(n) + " k " + std::to_string(k);
  }
};

// Runs one product and compares every element; `packed` packs A first.
template <class T>
void check_product(Sizes s, Layout a_layout, Layout b_layout, Epilogue epilogue, Place place, bool packed) {
  const Case where(s.text() + (packed ? " packed" : "") + " layouts " + std::to_string(int(a_layout)) +
                   std::to_string(int(b_layout)) + " epilogue " + std::to_string(int(epilogue)) + " " +
                   name(place));
  const Matrix<T> a(s.m, s.k, a_layout, place, 1), b(s.k, s.n, b_layout, place, 2);
  const Buffer<T> row_bias(s.m, place), col_bias(s.n, place), pack(packed ? s.m * s.k : 0, place);
  row_bias.fill_random(3);
  col_bias.fill_random(4);
  // C is part of a wider matrix, whose other columns must stay as they are.
  const int64_t c_row = s.n + 2;
  const Buffer<T> c(s.m * s.n == 0 ? 0 : (s.m - 1) * c_row + s.n, place);
  c.fill(0.5);
  const bool accumulate = epilogue == Epilogue::kAccumulate;
  const bool by_row = epilogue == Epilogue::kBiasRow || epilogue == Epilogue::kBothBiases;
  const bool by_col = epilogue == Epilogue::kBiasCol || epilogue == Epilogue::kBothBiases;

  GemmParams<T> g;
  g.m = s.m;
  g.n = s.n;
  g.k = s.k;
  g.a = a.buffer.data();
  g.a_row = a.row;
  g.a_col = a.col;
  g.b = b.buffer.data();
  g.b_row = b.row;
  g.b_col = b.col;
  g.c = c.data();
  g.c_row = c_row;
  g.accumulate = accumulate;
  g.bias_row = by_row ? row_bias.data() : nullptr;
  g.bias_col = by_col ? col_bias.data() : nullptr;
  if (packed) {
    gemm_pack_a(g, pack.data());
    g.packed_a = pack.data();
    g.a = nullptr;
  }
  gemm(g);

  // What one chain of additions in T gets wrong at most: the kernel may be twice as far off.
  double chain_error = 0;
  std::vector<double> expected(c.size(), 0.5);
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      long double sum = 0;  // a reference for double too
      T chain = 0;
      for (int64_t p = 0; p < s.k; ++p) {
        sum += static_cast<long double>(a.at(i, p)) * b.at(p, j);
        chain += static_cast<T>(a.at(i, p)) * static_cast<T>(b.at(p, j));
      }
      chain_error = std::max(chain_error, static_cast<double>(std::fabs(chain - sum)));
      if (accumulate) sum += 0.5;
      if (by_row) sum += to_double(row_bias[i]);
      if (by_col) sum += to_double(col_bias[j]);
      expected[i * c_row + j] = static_cast<double>(sum);
    }
  }
  const double eps = std::numeric_limits<T>::epsilon();
  CHECK_CLOSE(c, expected, 4 * eps, std::max(2 * chain_error, eps * (2 + 2 * std::sqrt(double(s.k)))));
}

// Sizes around the edges of every instruction set's tiles.
const std::vector<int64_t> kEdges = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 28, 31, 32, 33, 48, 65};

template <class T>
void check_edges() {
  uint64_t pick = 0;
  const auto one_of = [&](int64_t count) {
    return static_cast<int64_t>(random_at(99, static_cast<int64_t>(pick++), 0, 1) *
                                static_cast<double>(count));
  };
  const auto edge = [&] { return kEdges[one_of(static_cast<int64_t>(kEdges.size()))]; };
  for (const Layout a : kLayouts) {
    for (const Layout b : kLayouts) {
      for (const Place place : kPlaces) {
        for (int repeat = 0; repeat < 6; ++repeat) {
          const Sizes sizes{edge(), edge(), edge()};
          check_product<T>(sizes, a, b, static_cast<Epilogue>(one_of(5)), place, one_of(3) == 0);
        }
      }
    }
  }
}

}  // namespace

TEST(gemm_edges_float) {
  check_edges<float>();
}
TEST(gemm_edges_double) {
  check_edges<double>();
}

TEST(gemm_every_height_and_width) {
  for (int64_t m = 1; m <= 30; ++m)
    check_product<float>({m, 37, 19}, Layout::kRows, Layout::kRows, Epilogue::kBothBiases, Place::kEnd,
                         m % 2 == 0);
  for (int64_t n = 1; n <= 70; ++n) {
    check_product<float>({17, n, 21}, Layout::kRows, Layout::kColumns, Epilogue::kBothBiases, Place::kEnd,
                         false);
    check_product<float>({1, n, 21}, Layout::kColumns, Layout::kRows, Epilogue::kAccumulate, Place::kEnd,
                         false);
  }
  for (int64_t k = 1; k <= 40; ++k)
    check_product<double>({5, 11, k}, Layout::kRows, Layout::kColumns, Epilogue::kPlain, Place::kEnd, false);
}

// More than one block of steps, of columns and of rows.
TEST(gemm_blocks) {
  for (const Layout a : {Layout::kRows, Layout::kColumns}) {
    for (const Layout b : {Layout::kRows, Layout::kColumns}) {
      for (const bool packed : {false, true}) {
        check_product<float>({150, 90, 1000}, a, b, Epilogue::kBothBiases, Place::kEnd, packed);
        check_product<double>({150, 90, 500}, a, b, Epilogue::kAccumulate, Place::kEnd, packed);
      }
    }
  }
  check_product<float>({40, 1500, 390}, Layout::kColumns, Layout::kColumns, Epilogue::kPlain, Place::kEnd,
                       false);
}

TEST(gemm_without_steps_is_the_bias) {
  for (const Epilogue e :
       {Epilogue::kPlain, Epilogue::kAccumulate, Epilogue::kBiasRow, Epilogue::kBothBiases})
    for (const Layout b : {Layout::kRows, Layout::kColumns})
      check_product<float>({7, 35, 0}, Layout::kRows, b, e, Place::kEnd, false);
}

TEST(gemm_empty) {
  for (const Sizes s : {Sizes{0, 5, 3}, Sizes{5, 0, 3}, Sizes{0, 0, 0}})
    check_product<float>(s, Layout::kRows, Layout::kColumns, Epilogue::kBothBiases, Place::kEnd, s.m == 0);
}

// A gradient that was expanded has stride 0 everywhere.
TEST(gemm_stride_zero) {
  const Buffer<float> one(1), x(40 * 50), c(30 * 50);
  one.fill(1);
  x.fill_random(5);
  GemmParams<float> g;
  g.m = 30;
  g.n = 50;
  g.k = 40;
  g.a = one.data();
  g.b = x.data();
  g.b_row = 50;
  g.b_col = 1;
  g.c = c.data();
  g.c_row = 50;
  gemm(g);
  std::vector<double> expected(30 * 50, 0.0);
  for (int64_t i = 0; i < 30; ++i)
    for (int64_t j = 0; j < 50; ++j)
      for (int64_t p = 0; p < 40; ++p) expected[i * 50 + j] += to_double(x[p * 50 + j]);
  CHECK_CLOSE(c, expected, 1e-6, 1e-5);
}

// A NaN or an infinity reaches its row and column, and nothing else.
TEST(gemm_nan_stays_in_its_row) {
  for (const bool by_columns : {false, true}) {
    const int64_t m = 9, n = 35, k = 20;
    const Matrix<float> a(m, k, Layout::kRows, Place::kEnd, 1);
    const Matrix<float> b(k, n, by_columns ? Layout::kColumns : Layout::kRows, Place::kEnd, 2);
    a.buffer[4 * k + 19] = std::numeric_limits<float>::quiet_NaN();
    const Buffer<float> c(m * n);
    GemmParams<float> g;
    g.m = m;
    g.n = n;
    g.k = k;
    g.a = a.buffer.data();
    g.a_row = a.row;
    g.a_col = a.col;
    g.b = b.buffer.data();
    g.b_row = b.row;
    g.b_col = b.col;
    g.c = c.data();
    g.c_row = n;
    gemm(g);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) CHECK(std::isnan(c[i * n + j]) == (i == 4));
  }
}

TEST(gemm_same_bits_for_any_threads) {
  for (const Sizes s : {Sizes{64, 300, 400}, Sizes{3, 2000, 500}, Sizes{1000, 3, 500}, Sizes{300, 33, 800},
                        Sizes{10, 90, 3000}}) {
    for (const Layout b_layout : {Layout::kRows, Layout::kColumns}) {
      const Case where(s.text());
      const Matrix<float> a(s.m, s.k, Layout::kRows, Place::kEnd, 1), b(s.k, s.n, b_layout, Place::kEnd, 2);
      const Buffer<float> first(s.m * s.n), c(s.m * s.n);
      GemmParams<float> g;
      g.m = s.m;
      g.n = s.n;
      g.k = s.k;
      g.a = a.buffer.data();
      g.a_row = a.row;
      g.a_col = a.col;
      g.b = b.buffer.data();
      g.b_row = b.row;
      g.b_col = b.col;
      g.c_row = s.n;
      g.c = first.data();
      gemm_serial(g);
      g.c = c.data();
      each_thread_count([&] {
        c.fill(0);
        gemm(g);
        CHECK(c.same_bits(first));
      });
    }
  }
}
