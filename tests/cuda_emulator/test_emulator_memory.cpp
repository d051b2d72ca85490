// The emulator's memory: shared arrays, wide loads, atomics, 16-bit numbers; and that it finds accesses that
// are wrong on purpose.
#include <bit>
#include <cmath>

#include "cuda/common.cuh"
#include "cuda_emulator/faults.h"
#include "harness.h"

namespace fastnn::cuda {
namespace {

using emulator::contains, emulator::dies, emulator::error_of;
using testing::Buffer;

// ---- Shared memory ----

template <class T>
__device__ __forceinline__ bool poisoned(const T* p, int n) {
  for (int i = 0; i < n; ++i)
    if (!isnan(static_cast<double>(p[i]))) return false;
  return true;
}

__global__ void shared_is_poisoned(int* out) {
  FASTNN_SHARED(float, numbers, 100);
  FASTNN_SHARED(double, more, 7);
  FASTNN_DYNAMIC_SHARED(float, dynamic);
  out[blockIdx.x] = poisoned(numbers, 100) && poisoned(more, 7) && poisoned(dynamic, 50);
  for (int i = 0; i < 100; ++i) numbers[i] = 1;
  for (int i = 0; i < 50; ++i) dynamic[i] = 1;
  more[6] = 2;
}

TEST(shared_memory_is_nan_in_every_block) {
  Buffer<int32_t> out(5);
  launch(shared_is_poisoned, dim3(5), dim3(1), 200, nullptr, out.data());
  for (int block = 0; block < 5; ++block) CHECK(out[block] == 1);
  CHECK(contains(error_of([&] { launch(shared_is_poisoned, dim3(1), dim3(1), 0, nullptr, out.data()); }),
                 "the launch gave none"));
}

__global__ void write_shared(int at, int* out) {
  FASTNN_SHARED(int, numbers, 37);
  int* p = numbers;  // past the bounds that the compiler knows
  p[at] = 5;
  out[0] = p[at];
}
__global__ void read_shared(int at, int* out) {
  FASTNN_SHARED(int, numbers, 37);
  const int* p = numbers;
  out[0] = p[at];
}
__global__ void index_shared(int at, int* out) {
  FASTNN_SHARED(int, numbers, 37);
  out[0] = numbers[at];
}
__global__ void write_dynamic(int at, int* out) {
  FASTNN_DYNAMIC_SHARED(int, numbers);
  numbers[at] = 5;
  out[0] = numbers[at];
}

TEST_ONCE(shared_memory_has_bounds) {
  Buffer<int32_t> out(1);
  const auto start = [&](auto kernel, int at) {
    launch(kernel, dim3(1), dim3(1), 16 * sizeof(int), nullptr, at, out.data());
  };
  for (int at : {0, 36}) {
    start(write_shared, at), start(read_shared, at), start(index_shared, at);
  }
  start(write_dynamic, 15);
  const auto found = [&](auto kernel, int at) {
    return dies([&] {
      if (!error_of([&] { start(kernel, at); }).empty()) std::abort();
    });
  };
  CHECK(found(write_shared, 37) && found(read_shared, 37) && found(index_shared, 37));
  CHECK(found(write_shared, -1) && found(index_shared, -1));
  CHECK(found(write_dynamic, 16) && found(write_dynamic, -1));
}

template <int kBytes>
__global__ void much_shared(char* out) {
  FASTNN_SHARED(char, bytes, kBytes);
  bytes[0] = 1;
  *out = bytes[0];
}

TEST_ONCE(shared_memory_has_an_end) {
  Buffer<uint8_t> out(1);
  char* p = reinterpret_cast<char*>(out.data());
  launch(much_shared<48 * 1024>, dim3(1), dim3(1), 179 * 1024, nullptr, p);
  CHECK(contains(error_of([&] { launch(much_shared<48 * 1024 + 1>, dim3(1), dim3(1), 0, nullptr, p); }),
                 "48 KiB"));
  CHECK(contains(error_of([&] { launch(much_shared<48 * 1024>, dim3(1), dim3(1), 180 * 1024, nullptr, p); }),
                 "227 KiB"));
}

// ---- Global memory ----

__global__ void copy(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}

TEST_ONCE(global_memory_has_bounds) {
  Buffer<float> x(70), y(70);
  x.fill(1);
  launch(copy, dim3(3), dim3(32), 0, nullptr, x.data(), y.data(), 70);
  const Buffer<float> shorter(69);
  CHECK(dies([&] { launch(copy, dim3(3), dim3(32), 0, nullptr, shorter.data(), y.data(), 70); }));
  CHECK(dies([&] { launch(copy, dim3(3), dim3(32), 0, nullptr, x.data(), shorter.data(), 70); }));
}

template <class V>
__global__ void copy_wide(const float* x, float* y) {
  *reinterpret_cast<V*>(y) = *reinterpret_cast<const V*>(x);
}
__global__ void copy_pack(const float* x, float* y) {
  store_pack(y, load_pack(x));
}
__global__ void copy_hinted(const float* x, float* y) {
  __stcs(reinterpret_cast<float4*>(y), __ldcs(reinterpret_cast<const float4*>(x)));
}

TEST_ONCE(wide_accesses_must_be_aligned) {
  const Buffer<float> x(8, testing::Place::kStart), y(8, testing::Place::kStart);
  x.fill(1);
  const auto start = [&](auto kernel, int from, int to) {
    launch(kernel, dim3(1), dim3(1), 0, nullptr, x.data() + from, y.data() + to);
  };
  const auto found = [&](auto kernel, int from, int to) {
    return dies([&] {
      if (!error_of([&] { start(kernel, from, to); }).empty()) std::abort();
    });
  };
  start(copy_wide<float4>, 4, 0), start(copy_wide<float2>, 2, 6), start(copy_pack, 4, 4);
  CHECK(found(copy_wide<float4>, 1, 0) && found(copy_wide<uint4>, 0, 2));
  CHECK(found(copy_wide<float2>, 1, 0) && found(copy_wide<float2>, 0, 3));
  CHECK(found(copy_pack, 1, 0) && found(copy_pack, 0, 1));
  CHECK(contains(error_of([&] { start(copy_hinted, 1, 0); }), "misaligned"));
  CHECK(contains(error_of([&] { start(copy_hinted, 0, 3); }), "misaligned"));
}

// ---- Atomic operations ----

__global__ void atomics(int* sum, unsigned* bits, float* real, int* largest, int* claimed) {
  const int t = threadIdx.x;
  atomicAdd(sum, t);
  atomicOr(bits + t / 32, 1u << t % 32);
  atomicAdd(real, 0.5f);
  atomicMax(largest, t * 37 % 64);
  if (atomicCAS(claimed, -1, t) == -1) atomicExch(claimed + 1, t);
}

TEST(atomics_lose_nothing) {
  Buffer<int32_t> sum(1), bits(2), largest(1), claimed(2);
  Buffer<float> real(1);
  sum.fill(0), bits.fill(0), real.fill(0), largest.fill(-5);
  launch(atomics, dim3(1), dim3(64), 0, nullptr, sum.data(), reinterpret_cast<unsigned*>(bits.data()),
         real.data(), largest.data(), claimed.data());
  CHECK(sum[0] == 2016 && bits[0] == -1 && bits[1] == -1 && real[0] == 32 && largest[0] == 63);
  CHECK(claimed[0] >= 0 && claimed[0] < 64 && claimed[1] == claimed[0]);
}

// ---- Numbers: every 16-bit number, and floats on, between and beside them, against the harness's
// conversions ----

template <class T>
int wrong_roundings() {
  int wrong = 0;
  const auto compare = [&](float x) {
    const uint16_t ours = store<T>(x).bits, expected = testing::from_double<T>(x).bits;
    wrong += std::isnan(x) ? (ours & 0x7fff) != 0x7fff : ours != expected;
  };
  for (int i = 0; i < 65536; ++i) {
    const T number{static_cast<uint16_t>(i)};
    const float x = load(number);
    const double expected = testing::to_double(number);
    wrong += std::isnan(expected)
                 ? !std::isnan(x)
                 : std::bit_cast<uint64_t>(static_cast<double>(x)) != std::bit_cast<uint64_t>(expected);
    if (std::isnan(x) || (i & 0x7fff) == 0x7fff) continue;
    const float after = load(T{static_cast<uint16_t>(i + 1)});
    const float half_way = std::isfinite(after) ? x + (after - x) / 2 : x;
    for (float y : {x, half_way}) {
      compare(y), compare(std::nextafter(y, INFINITY)), compare(std::nextafter(y, -INFINITY));
    }
  }
  for (float x : {65504.0f, 65519.996f, 65520.0f, 1e6f, INFINITY, -INFINITY, NAN, 3.4e38f, 3.39e38f, 1e-45f,
                  0x1p-25f, 0x1.000002p-25f}) {
    compare(x), compare(-x);
  }
  return wrong;
}

TEST_ONCE(sixteen_bit_numbers_round_to_the_bit) {
  CHECK(wrong_roundings<Float16>() == 0);
  CHECK(wrong_roundings<BFloat16>() == 0);
}

TEST_ONCE(bits_of_integers) {
  CHECK(__popc(0xf0f0u) == 8 && __clz(1) == 31 && __clz(0) == 32 && __ffs(0) == 0 && __ffs(12) == 3);
  CHECK(__brev(1u) == 0x80000000u && __umulhi(0x80000000u, 6u) == 3);
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7531u) == 0x77553311u);
  CHECK(__byte_perm(0x33221180u, 0, 0x4448u) == 0xffu);
  CHECK(std::isnan(load(store<Float16>(NAN))) && __saturatef(NAN) == 0 && __saturatef(2) == 1);
}

}  // namespace
}  // namespace fastnn::cuda
