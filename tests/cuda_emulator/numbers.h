// Bits of numbers, 16-bit numbers, integer and rounded arithmetic.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "vectors.h"

// ---- Bits ----

inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline double __longlong_as_double(long long x) {
  return std::bit_cast<double>(x);
}
inline long long __double_as_longlong(double x) {
  return std::bit_cast<long long>(x);
}
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
  return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
  return y;
}
// Byte i of the result is byte (selector >> 4 i & 7) of the eight in (y, x).
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> 4 * i & 0xf;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (pick & 7)) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;  // its sign, eight times
    result |= byte << 8 * i;
  }
  return result;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(uint64_t{x} * y >> 32);
}

// ---- Arithmetic. The fast functions of the device have other errors than these. ----

using std::max;
using std::min;

inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / sqrt(x);
}
inline float __expf(float x) {
  return expf(x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float __fmaf_rn(float x, float y, float z) {
  return fmaf(x, y, z);
}
inline float __saturatef(float x) {
  return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;  // NaN: 0
}

// ---- 16-bit numbers: conversions round to nearest even, NaN becomes 0x7fff ----

struct __half {
  unsigned short x;
};
struct __nv_bfloat16 {
  unsigned short x;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __half __ushort_as_half(unsigned short x) {
  return {x};
}
inline unsigned short __half_as_ushort(__half x) {
  return x.x;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) {
  return {x};
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
  return x.x;
}

inline float __half2float(__half h) {
  const unsigned sign = unsigned{h.x & 0x8000u} << 16, rest = h.x & 0x7fffu;
  if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  if (rest >= 0x0400) return __uint_as_float(sign | ((rest << 13) + (112u << 23)));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // subnormal, or zero
  return __uint_as_float(sign | __float_as_uint(magnitude));
}
inline __half __float2half_rn(float f) {
  const unsigned bits = __float_as_uint(f), rest = bits & 0x7fffffffu;
  const auto sign = static_cast<unsigned short>(bits >> 16 & 0x8000u);
  if (rest > 0x7f800000u) return {0x7fff};
  if (rest >= 0x477ff000u) return {static_cast<unsigned short>(sign | 0x7c00u)};  // 65520 and more
  unsigned rounded;
  if (rest < 0x38800000u) {
    // Below 2^-14: the sum with 1/2 has the unit of a subnormal half.
    rounded = __float_as_uint(__uint_as_float(rest) + 0.5f) - __float_as_uint(0.5f);
  } else {
    rounded = (rest - (112u << 23) + 0xfffu + (rest >> 13 & 1)) >> 13;
  }
  return {static_cast<unsigned short>(sign | rounded)};
}
inline __half __float2half(float f) {
  return __float2half_rn(f);
}

inline float __bfloat162float(__nv_bfloat16 b) {
  return __uint_as_float(unsigned{b.x} << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const unsigned bits = __float_as_uint(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16(float f) {
  return __float2bfloat16_rn(f);
}

inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float2 __half22float2(__half2 h) {
  return {__half2float(h.x), __half2float(h.y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 b) {
  return {__bfloat162float(b.x), __bfloat162float(b.y)};
}
