// csrc/cuda/mma.cuh for the emulator: the same functions by the documented fragments. A product adds its
// terms to c one after another in float, which is not the hardware's order. A copy takes place when it is
// waited for; until then its destination is NaN.
#pragma once
#include "cuda/common.cuh"

namespace fastnn::cuda {
namespace emulated {

constexpr unsigned kEveryLane = 0xffffffffu;

struct Fragments {
  float* c;
  const uint32_t *a, *b;
};
inline Fragments& fragments(const emulator::Slots& slots, int lane) {
  return *static_cast<Fragments*>(slots.of[lane]);
}

// The number of a fragment: half `part` of the register, or all of it.
template <class T>
float number(uint32_t reg, int part) {
  return load(T{static_cast<uint16_t>(reg >> 16 * part)});
}
struct Tf32 {};
template <>
inline float number<Tf32>(uint32_t reg, int) {
  return __uint_as_float(reg & 0xffffe000u);
}

// c += a b with kParts numbers of type T in a register.
template <class T, int kParts>
void product(const emulator::Slots& slots) {
  constexpr int kBlock = 4 * kParts, K = 2 * kBlock;  // columns of A that one register of each lane spans
  float A[16][K], B[K][8];
  for (int l = 0; l < 32; ++l) {
    const Fragments& f = fragments(slots, l);
    for (int part = 0; part < kParts; ++part) {
      const int k = l % 4 * kParts + part;
      for (int i = 0; i < 4; ++i) A[l / 4 + i % 2 * 8][k + i / 2 * kBlock] = number<T>(f.a[i], part);
      for (int i = 0; i < 2; ++i) B[k + i * kBlock][l / 4] = number<T>(f.b[i], part);
    }
  }
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) {
      float& c = fragments(slots, l).c[i];
      for (int k = 0; k < K; ++k) c += A[l / 4 + i / 2 * 8][k] * B[k][l % 4 * 2 + i % 2];
    }
  }
}

template <int kMatrices>
struct Rows {
  const void* row;
  uint32_t* out;
};

}  // namespace emulated

template <class T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 emulator::Where where = emulator::Where::current()) {
  emulated::Fragments mine{c, a, b};
  emulator::warp_meeting("mma_16x8x16", emulated::kEveryLane, &mine, emulated::product<T, 2>, where);
}
inline void mma_16x8x8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            emulator::Where where = emulator::Where::current()) {
  emulated::Fragments mine{c, a, b};
  emulator::warp_meeting("mma_16x8x8_tf32", emulated::kEveryLane, &mine, emulated::product<emulated::Tf32, 1>,
                         where);
}

inline uint32_t to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  return isfinite(x) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

template <int kMatrices, bool kTransposed>
void load_matrices(uint32_t (&out)[kMatrices], const void* row,
                   emulator::Where where = emulator::Where::current()) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  using Rows = emulated::Rows<kMatrices>;
  if (emulator::lane() < 8 * kMatrices) emulator::check_aligned(row, 16, "ldmatrix: a row");
  Rows mine{row, out};
  emulator::warp_meeting(
      "load_matrices", emulated::kEveryLane, &mine,
      [](const emulator::Slots& slots) {
        const auto rows = [&](int l) { return static_cast<Rows*>(slots.of[l]); };
        for (int m = 0; m < kMatrices; ++m) {
          const auto number = [&](int r, int column) {
            return uint32_t{static_cast<const uint16_t*>(rows(8 * m + r)->row)[column]};
          };
          for (int l = 0; l < 32; ++l) {
            const int r = l / 4, column = l % 4 * 2;
            rows(l)->out[m] = kTransposed ? number(column, r) | number(column + 1, r) << 16
                                          : number(r, column) | number(r, column + 1) << 16;
          }
        }
      },
      where);
}

template <int kBytes>
void copy_async(void* shared, const void* global, bool exists = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::copy_async(shared, global, kBytes, exists);
}
inline void copy_async_commit() {
  emulator::copy_async_commit();
}
template <int kPending>
void copy_async_wait() {
  emulator::copy_async_wait(kPending);
}

}  // namespace fastnn::cuda
