// Tensor cores and asynchronous copies as the emulator has them: whole products through ldmatrix and mma
// against loops in double, and copies that are not waited for.
#include <cmath>
#include <vector>

#include "cuda/mma.cuh"
#include "cuda_emulator/faults.h"
#include "harness.h"

namespace fastnn::cuda {
namespace {

using emulator::contains, emulator::error_of;
using testing::Buffer;

// c [16, 8] = a [16, 16] b, from shared memory. kTransposed: b is [16, 8] in memory, else its columns lie in
// rows, [8, 16].
template <class T, bool kTransposed>
__global__ void product(const T* a, const T* b, float* c) {
  FASTNN_SHARED(uint4, bytes, (16 * 16 + 16 * 8) * 2 / 16);
  T *of_a = reinterpret_cast<T*>(bytes), *of_b = of_a + 256;
  const int l = threadIdx.x;
  for (int i = l; i < 256; i += 32) of_a[i] = a[i];
  for (int i = l; i < 128; i += 32) of_b[i] = b[i];
  __syncwarp();
  uint32_t fa[4], fb[2];
  // Four quarters of a: rows l % 16, columns from 0 (lanes 0 to 15) or 8.
  load_matrices<4, false>(fa, of_a + l % 16 * 16 + l / 16 * 8);
  // Two halves of b along k.
  if (kTransposed) {
    load_matrices<2, true>(fb, of_b + l % 16 * 8);
  } else {
    load_matrices<2, false>(fb, of_b + l % 8 * 16 + l / 8 % 2 * 8);
  }
  float sums[4] = {1, 1, 1, 1};
  mma_16x8x16<T>(sums, fa, fb);
  for (int i = 0; i < 4; ++i) c[(l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = sums[i];
}

template <class T, bool kTransposed>
void check_product() {
  Buffer<T> a(256), b(128);
  a.fill_random(1), b.fill_random(2);
  Buffer<float> c(128);
  launch(product<T, kTransposed>, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(), c.data());
  std::vector<double> want(128, 1.0);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n)
      for (int k = 0; k < 16; ++k) {
        const auto of_b = b[kTransposed ? k * 8 + n : n * 16 + k];
        want[m * 8 + n] += testing::to_double(a[m * 16 + k]) * testing::to_double(of_b);
      }
  CHECK_CLOSE(c, want, 1e-6, 1e-6);
}

TEST(products_of_halves) {
  check_product<BFloat16, false>();
  check_product<BFloat16, true>();
  check_product<Float16, false>();
  check_product<Float16, true>();
}

// Fragments straight from memory: a [16, 8], b [8, 8].
__global__ void product_tf32(const float* a, const float* b, float* c) {
  const int l = threadIdx.x, g = l / 4, t = l % 4;
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i) fa[i] = to_tf32(a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
  for (int i = 0; i < 2; ++i) fb[i] = to_tf32(b[(t + i * 4) * 8 + g]);
  float sums[4] = {0, 0, 0, 0};
  mma_16x8x8_tf32(sums, fa, fb);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sums[i];
}

// Ten bits of the fraction, to nearest.
double tf32(double x) {
  const double unit = std::ldexp(1.0, std::ilogb(x) - 10);
  return std::round(x / unit) * unit;
}

TEST(products_of_tf32) {
  Buffer<float> a(128), b(64), c(128);
  a.fill_random(1), b.fill_random(2);
  launch(product_tf32, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(), c.data());
  std::vector<double> want(128, 0.0);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n)
      for (int k = 0; k < 8; ++k) want[m * 8 + n] += tf32(a[m * 8 + k]) * tf32(b[k * 8 + n]);
  CHECK_CLOSE(c, want, 1e-6, 1e-6);
}

// Every number is 100 matrix + 10 row + column.
template <int kMatrices, bool kTransposed>
__global__ void load_and_show(uint32_t* out, int shift) {
  FASTNN_SHARED(uint4, bytes, 8 * kMatrices + 1);
  uint16_t* numbers = reinterpret_cast<uint16_t*>(bytes);
  const int l = threadIdx.x;
  for (int i = l; i < 64 * kMatrices; i += 32) numbers[i] = i / 64 * 100 + i / 8 % 8 * 10 + i % 8;
  __syncwarp();
  uint32_t got[kMatrices];
  load_matrices<kMatrices, kTransposed>(got, numbers + l % (8 * kMatrices) * 8 + shift);
  for (int m = 0; m < kMatrices; ++m) out[m * 32 + l] = got[m];
}

template <int kMatrices, bool kTransposed>
void check_load() {
  Buffer<int32_t> out(32 * kMatrices);
  const auto start = [&](int shift) {
    launch(load_and_show<kMatrices, kTransposed>, dim3(1), dim3(32), 0, nullptr,
           reinterpret_cast<uint32_t*>(out.data()), shift);
  };
  start(0);
  for (int m = 0; m < kMatrices; ++m) {
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, column = l % 4 * 2, step = kTransposed ? 10 : 1;
      const int first = m * 100 + (kTransposed ? column * 10 + row : row * 10 + column);
      CHECK(out[m * 32 + l] == (first | (first + step) << 16));
    }
  }
  CHECK(contains(error_of([&] { start(4); }), "misaligned"));
}

TEST(matrices_are_spread_over_lanes) {
  check_load<1, false>(), check_load<1, true>();
  check_load<2, false>(), check_load<2, true>();
  check_load<4, false>(), check_load<4, true>();
}

__global__ void part_of_a_warp() {
  float c[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x != 9) mma_16x8x16<BFloat16>(c, a, b);
}

TEST(a_product_needs_the_whole_warp) {
  CHECK(contains(error_of([] { launch(part_of_a_warp, dim3(1), dim3(32), 0, nullptr); }), "returned"));
}

// ---- Copies: tiles of 32 packs through a ring of kStages, each summed by the thread opposite ----

constexpr int kStages = 3;

template <int kPending, bool kBarrier, bool kCommit>
__global__ void sum_tiles(const float4* x, float* sums, int tiles, int n) {
  FASTNN_SHARED(float4, ring, kStages * 32);
  const int l = threadIdx.x;
  const auto fetch = [&](int tile) {
    const int i = tile * 32 + l;
    copy_async<16>(&ring[tile % kStages * 32 + l], x + (i < n ? i : 0), i < n);
  };
  const auto commit = [] {
    if (kCommit) copy_async_commit();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) fetch(tile), commit();
  float sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<kPending>();
    if (kBarrier) __syncthreads();
    const float4 v = ring[tile % kStages * 32 + 31 - l];
    sum += v.x + v.y + v.z + v.w;
    if (tile + kStages - 1 < tiles) fetch(tile + kStages - 1);
    commit();
  }
  copy_async_wait<0>();
  sums[l] = sum;
}

template <int kPending, bool kBarrier, bool kCommit>
int wrong_sums() {
  constexpr int kTiles = 5, n = kTiles * 32 - 7;
  Buffer<float> x(4 * n, testing::Place::kEnd), sums(32);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  launch(sum_tiles<kPending, kBarrier, kCommit>, dim3(1), dim3(32), 0, nullptr,
         reinterpret_cast<const float4*>(x.data()), sums.data(), kTiles, n);
  int wrong = 0;
  for (int l = 0; l < 32; ++l) {
    double want = 0;
    for (int tile = 0; tile < kTiles; ++tile) {
      const int first = (tile * 32 + 31 - l) * 4;
      for (int i = first; i < first + 4; ++i) want += i < 4 * n ? i : 0;
    }
    wrong += sums[l] != want;
  }
  return wrong;
}

TEST(copies_arrive_at_their_wait) {
  CHECK((wrong_sums<kStages - 2, true, true>() == 0));
  CHECK((wrong_sums<0, true, true>() == 0));
  CHECK((wrong_sums<kStages - 1, true, true>() > 0));   // waits for one group too few
  CHECK((wrong_sums<kStages - 2, true, false>() > 0));  // no groups to wait for
  CHECK((wrong_sums<kStages - 2, false, true>() > 0));  // other threads' copies need a barrier
}

__global__ void misaligned_copy(const float* x, int to, int from) {
  FASTNN_SHARED(float4, tile, 2);
  copy_async<16>(reinterpret_cast<float*>(tile) + to, x + from);
}

TEST(a_copy_must_be_aligned_and_inside) {
  const Buffer<float> x(8);
  x.fill(1);
  const auto start = [&](int to, int from) {
    launch(misaligned_copy, dim3(1), dim3(1), 0, nullptr, x.data(), to, from);
  };
  start(4, 4);
  CHECK(contains(error_of([&] { start(2, 0); }), "misaligned"));
  CHECK(contains(error_of([&] { start(0, 1); }), "misaligned"));
  CHECK(emulator::dies([&] { start(0, 8); }));
}

}  // namespace
}  // namespace fastnn::cuda
