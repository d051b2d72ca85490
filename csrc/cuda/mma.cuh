// Matrix products of a warp on tensor cores, and copies from global to shared memory behind its back: the PTX
// of sm_80 and later, and all PTX there is here. The emulator has another header of this name.
//
// Fragments, lane l, with g = l / 4 and t = l % 4 (PTX ISA, "Matrix multiply-accumulate operation using
// mma"):
//   A [16, k]: register i holds row g + 8 (i % 2), columns from (2 t) + 8 (i / 2), or of tf32 column t + 4 (i
//   / 2) B [k, 8]:  register i holds column g, rows from (2 t) + 8 i, or of tf32 row t + 4 i C [16, 8]:
//   number i is at row g + 8 (i / 2), column 2 t + i % 2
// A register holds two 16-bit numbers, the lower half first, or one tf32.
#pragma once
#include "cuda/common.cuh"

namespace fastnn::cuda {

// ---- Products: c += a b, in float. Every lane of the warp calls. ----

// T: BFloat16 or Float16.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_16x8x16<BFloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                      const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_16x8x16<Float16>(float (&c)[4], const uint32_t (&a)[4],
                                                     const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Of a and b the hardware sees the sign, the exponent and ten bits of the fraction: to_tf32() rounds to them.
__device__ __forceinline__ void mma_16x8x8_tf32(float (&c)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// To nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// ---- Loads of fragments from shared memory ----

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// kMatrices (1, 2 or 4) of 8 x 8 16-bit numbers: lane 8 m + r gives the address of row r of matrix m, aligned
// to 16 bytes; lane l gets columns 2 (l % 4) and the next of row l / 4 of each, or of its transpose.
template <int kMatrices, bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&out)[kMatrices], const void* row) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  const uint32_t at = shared_address(row);
#define FASTNN_LDMATRIX(count, list, ...)                                             \
  if constexpr (kMatrices == count && kTransposed) {                                  \
    asm volatile("ldmatrix.sync.aligned.m8n8.x" #count ".trans.shared.b16 {" list ";" \
                 : __VA_ARGS__                                                        \
                 : "r"(at)                                                            \
                 : "memory");                                                         \
  } else if constexpr (kMatrices == count) {                                          \
    asm volatile("ldmatrix.sync.aligned.m8n8.x" #count ".shared.b16 {" list ";"       \
                 : __VA_ARGS__                                                        \
                 : "r"(at)                                                            \
                 : "memory");                                                         \
  }
  FASTNN_LDMATRIX(1, "%0}, [%1]", "=r"(out[0]))
  FASTNN_LDMATRIX(2, "%0, %1}, [%2]", "=r"(out[0]), "=r"(out[1]))
  FASTNN_LDMATRIX(4, "%0, %1, %2, %3}, [%4]", "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]))
#undef FASTNN_LDMATRIX
}

// ---- Copies that run on while the thread goes on ----

// kBytes (4, 8 or 16) from global to shared memory, both aligned to them; zeros unless `exists`, and nothing
// is read then. What lies there may be read after the wait for its group, by other threads after a barrier
// too.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool exists = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const int read = exists ? kBytes : 0;
  if constexpr (kBytes == 16) {  // past the first cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(read)
                 : "memory");
  }
}
// Makes a group of this thread's copies since the last one.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most the last kPending groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace fastnn::cuda
