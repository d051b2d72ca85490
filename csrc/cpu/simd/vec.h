// Vec<T>: one register of floats or doubles with plain operators, so that a kernel reads as algebra.
//
// Built on the compiler's vector extension: arithmetic, comparison and select need no intrinsics and
// exist on every target (16-byte vectors by default, which is SSE2 or NEON). AVX2 and AVX-512 widen
// the register and replace the few operations that the extension lacks: fused multiply-add, minimum and
// maximum, square root, rounding, masked loads, 16-bit floats.
//
// Everything here is in an anonymous namespace: this header is compiled once per instruction set, and
// no copy of a function may be shared between them by the linker. Include it only from csrc/cpu/kernels.
#pragma once
#include <cstdint>

#include "fastnn/dtype.h"
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#ifndef FASTNN_ISA
#error "compile this file through the kernels target: it sets FASTNN_ISA"
#endif

#define FASTNN_INLINE inline __attribute__((always_inline))

namespace {  // NOLINT: see above

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

// The register types; gcc drops the attribute when the element type is a template parameter.
template <class T>
struct Register;
template <>
struct Register<float> {
  typedef float Real __attribute__((vector_size(kVecBytes)));
  typedef int32_t Int __attribute__((vector_size(kVecBytes)));
  typedef uint32_t Uint __attribute__((vector_size(kVecBytes)));  // sums wrap; those of Int must not overflow
};
template <>
struct Register<double> {
  typedef double Real __attribute__((vector_size(kVecBytes)));
  typedef int64_t Int __attribute__((vector_size(kVecBytes)));
};

// All ones (true) or all zeros (false) in every lane; the result of a comparison.
template <class T>
struct Mask {
  using Raw = typename Register<T>::Int;
  Raw v;
  friend FASTNN_INLINE Mask operator&(Mask a, Mask b) { return {a.v & b.v}; }
  friend FASTNN_INLINE Mask operator|(Mask a, Mask b) { return {a.v | b.v}; }
  friend FASTNN_INLINE Mask operator~(Mask a) { return {~a.v}; }
};

template <class T>
struct Vec {
  using Scalar = T;
  using Raw = typename Register<T>::Real;
  using IntRaw = typename Register<T>::Int;
  static constexpr int N = kVecBytes / static_cast<int>(sizeof(T));

  Raw v;

  Vec() = default;
  FASTNN_INLINE Vec(Raw r) : v(r) {}                   // NOLINT: a register is a Vec
  FASTNN_INLINE Vec(T x) : v(x - Raw{}) {}             // NOLINT: broadcast; x - 0 keeps -0.0
  FASTNN_INLINE IntRaw bits() const { return reinterpret_cast<IntRaw>(v); }
  static FASTNN_INLINE Vec from_bits(IntRaw i) { return Vec(reinterpret_cast<Raw>(i)); }
  FASTNN_INLINE T operator[](int lane) const { return v[lane]; }

  friend FASTNN_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend FASTNN_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend FASTNN_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend FASTNN_INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend FASTNN_INLINE Vec operator-(Vec a) { return -a.v; }
  FASTNN_INLINE Vec& operator+=(Vec b) { return v += b.v, *this; }
  FASTNN_INLINE Vec& operator-=(Vec b) { return v -= b.v, *this; }
  FASTNN_INLINE Vec& operator*=(Vec b) { return v *= b.v, *this; }
  friend FASTNN_INLINE Mask<T> operator<(Vec a, Vec b) { return {a.v < b.v}; }
  friend FASTNN_INLINE Mask<T> operator<=(Vec a, Vec b) { return {a.v <= b.v}; }
  friend FASTNN_INLINE Mask<T> operator>(Vec a, Vec b) { return {a.v > b.v}; }
  friend FASTNN_INLINE Mask<T> operator>=(Vec a, Vec b) { return {a.v >= b.v}; }
  friend FASTNN_INLINE Mask<T> operator==(Vec a, Vec b) { return {a.v == b.v}; }
  friend FASTNN_INLINE Mask<T> operator!=(Vec a, Vec b) { return {a.v != b.v}; }
};

template <class T>
FASTNN_INLINE Mask<T> isnan(Vec<T> a) {
  return a != a;
}

// mask ? a : b, lane by lane.
template <class T>
FASTNN_INLINE Vec<T> select(Mask<T> mask, Vec<T> a, Vec<T> b) {
  return mask.v ? a.v : b.v;
}

// Lane i of the result's bit i: the mask as an integer.
template <class T>
FASTNN_INLINE uint32_t to_bits(Mask<T> m);
template <>
FASTNN_INLINE uint32_t to_bits(Mask<float> m) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)m.v);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)m.v));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)m.v));
#else
  uint32_t bits = 0;
  for (int i = 0; i < Vec<float>::N; ++i) bits |= static_cast<uint32_t>(m.v[i] & 1) << i;
  return bits;
#endif
}
template <>
FASTNN_INLINE uint32_t to_bits(Mask<double> m) {
  uint32_t bits = 0;
  for (int i = 0; i < Vec<double>::N; ++i) bits |= static_cast<uint32_t>(m.v[i] & 1) << i;
  return bits;
}

template <class T>
FASTNN_INLINE bool any(Mask<T> m) {
  return to_bits(m) != 0;
}

template <class T>
FASTNN_INLINE bool all(Mask<T> m) {
  return to_bits(m) == (1u << Vec<T>::N) - 1;
}

// fma(a, b, c) = a * b + c, rounded once where the target can.
// min and max: the second operand where the two are unordered, as x86 does; so max(Vec(0), x) keeps
// the NaN of x. max_nan and min_nan keep a NaN from either side, as torch does.
#if defined(__AVX512F__)
FASTNN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return (Vec<float>::Raw)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v); }
FASTNN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return (Vec<double>::Raw)_mm512_fmadd_pd((__m512d)a.v, (__m512d)b.v, (__m512d)c.v); }
FASTNN_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return (Vec<float>::Raw)_mm512_max_ps((__m512)a.v, (__m512)b.v); }
FASTNN_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return (Vec<double>::Raw)_mm512_max_pd((__m512d)a.v, (__m512d)b.v); }
FASTNN_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return (Vec<float>::Raw)_mm512_min_ps((__m512)a.v, (__m512)b.v); }
FASTNN_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return (Vec<double>::Raw)_mm512_min_pd((__m512d)a.v, (__m512d)b.v); }
FASTNN_INLINE Vec<float> sqrt(Vec<float> a) { return (Vec<float>::Raw)_mm512_sqrt_ps((__m512)a.v); }
FASTNN_INLINE Vec<double> sqrt(Vec<double> a) { return (Vec<double>::Raw)_mm512_sqrt_pd((__m512d)a.v); }
FASTNN_INLINE Vec<float> rint(Vec<float> a) { return (Vec<float>::Raw)_mm512_roundscale_ps((__m512)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FASTNN_INLINE Vec<double> rint(Vec<double> a) { return (Vec<double>::Raw)_mm512_roundscale_pd((__m512d)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif defined(__AVX2__)
FASTNN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return (Vec<float>::Raw)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v); }
FASTNN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return (Vec<double>::Raw)_mm256_fmadd_pd((__m256d)a.v, (__m256d)b.v, (__m256d)c.v); }
FASTNN_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return (Vec<float>::Raw)_mm256_max_ps((__m256)a.v, (__m256)b.v); }
FASTNN_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return (Vec<double>::Raw)_mm256_max_pd((__m256d)a.v, (__m256d)b.v); }
FASTNN_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return (Vec<float>::Raw)_mm256_min_ps((__m256)a.v, (__m256)b.v); }
FASTNN_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return (Vec<double>::Raw)_mm256_min_pd((__m256d)a.v, (__m256d)b.v); }
FASTNN_INLINE Vec<float> sqrt(Vec<float> a) { return (Vec<float>::Raw)_mm256_sqrt_ps((__m256)a.v); }
FASTNN_INLINE Vec<double> sqrt(Vec<double> a) { return (Vec<double>::Raw)_mm256_sqrt_pd((__m256d)a.v); }
FASTNN_INLINE Vec<float> rint(Vec<float> a) { return (Vec<float>::Raw)_mm256_round_ps((__m256)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FASTNN_INLINE Vec<double> rint(Vec<double> a) { return (Vec<double>::Raw)_mm256_round_pd((__m256d)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#else
template <class T>
FASTNN_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a * b + c;
}
template <class T>
FASTNN_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return select(a > b, a, b);
}
template <class T>
FASTNN_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
  return select(a < b, a, b);
}
FASTNN_INLINE Vec<float> sqrt(Vec<float> a) {
  for (int i = 0; i < Vec<float>::N; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
FASTNN_INLINE Vec<double> sqrt(Vec<double> a) {
  for (int i = 0; i < Vec<double>::N; ++i) a.v[i] = __builtin_sqrt(a.v[i]);
  return a;
}
// Adding and taking away 1.5 * 2^(mantissa bits) rounds to nearest even, for |a| < 2^(mantissa bits - 1).
FASTNN_INLINE Vec<float> rint(Vec<float> a) {
  const Vec<float> magic(12582912.0f);
  return select(max(a, -a) < Vec<float>(4194304.0f), (a + magic) - magic, a);
}
FASTNN_INLINE Vec<double> rint(Vec<double> a) {
  const Vec<double> magic(6755399441055744.0);
  return select(max(a, -a) < Vec<double>(2251799813685248.0), (a + magic) - magic, a);
}
#endif

template <class T>
FASTNN_INLINE Vec<T> max_nan(Vec<T> a, Vec<T> b) {
  return select(isnan(a), a, max(a, b));
}
template <class T>
FASTNN_INLINE Vec<T> min_nan(Vec<T> a, Vec<T> b) {
  return select(isnan(a), a, min(a, b));
}
template <class T>
FASTNN_INLINE Vec<T> abs(Vec<T> a) {
  using V = Vec<T>;
  return V::from_bits(a.bits() & ~V(T(-0.0)).bits());
}
template <class T>
FASTNN_INLINE Vec<T> copysign(Vec<T> magnitude, Vec<T> sign) {
  using V = Vec<T>;
  const auto bit = V(T(-0.0)).bits();
  return V::from_bits((magnitude.bits() & ~bit) | (sign.bits() & bit));
}

// 0, 1, 2, ...
template <class T>
FASTNN_INLINE Vec<T> iota() {
  Vec<T> r;
  for (int i = 0; i < Vec<T>::N; ++i) r.v[i] = static_cast<T>(i);
  return r;
}

// Sum and maximum of the lanes, halves folded onto each other: a fixed order.
template <class T>
FASTNN_INLINE T reduce_add(Vec<T> a) {
  T lane[Vec<T>::N];
  __builtin_memcpy(lane, &a.v, sizeof lane);
  for (int half = Vec<T>::N / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
template <class T>
FASTNN_INLINE T reduce_max_nan(Vec<T> a) {
  T best = a.v[0];
  for (int i = 1; i < Vec<T>::N; ++i) best = (a.v[i] > best || a.v[i] != a.v[i]) ? a.v[i] : best;
  return best;
}

// --- 16-bit floats -------------------------------------------------------------------------------

using fastnn::BFloat16;
using fastnn::Float16;

FASTNN_INLINE float to_float(BFloat16 h) {
  const uint32_t bits = static_cast<uint32_t>(h.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

// Round to nearest even; a NaN stays a (quiet) NaN.
FASTNN_INLINE BFloat16 to_bfloat16(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  if (f != f) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

FASTNN_INLINE float to_float(Float16 h) {
#if defined(__F16C__)
  return _cvtsh_ss(h.bits);
#else
  // Shift the exponent and mantissa into place and rescale by 2^112: the multiplication also makes
  // subnormals normal. Infinity and NaN get the all-ones exponent afterwards.
  uint32_t bits = static_cast<uint32_t>(h.bits & 0x7fff) << 13;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  f *= 5.192296858534828e33f;
  __builtin_memcpy(&bits, &f, 4);
  if ((h.bits & 0x7c00) == 0x7c00) bits |= 0x7f800000;
  bits |= static_cast<uint32_t>(h.bits & 0x8000) << 16;
  __builtin_memcpy(&f, &bits, 4);
  return f;
#endif
}

FASTNN_INLINE Float16 to_float16(float f) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT))};
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (bits >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to 65536 or more
  if (bits < 0x38800000) {  // subnormal half: let a float addition do the rounding
    float a, magic;
    const uint32_t magic_bits = 126u << 23;  // 0.5, whose last bit is 2^-24, the half's last bit
    __builtin_memcpy(&a, &bits, 4);
    __builtin_memcpy(&magic, &magic_bits, 4);
    a += magic;
    __builtin_memcpy(&bits, &a, 4);
    return {static_cast<uint16_t>(sign | (bits - magic_bits))};
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return {static_cast<uint16_t>(sign | ((bits - (112u << 23)) >> 13))};
#endif
}

// --- scalar conversion, any element type -----------------------------------------------------------

FASTNN_INLINE float to_compute(float x) { return x; }
FASTNN_INLINE double to_compute(double x) { return x; }
FASTNN_INLINE float to_compute(BFloat16 x) { return to_float(x); }
FASTNN_INLINE float to_compute(Float16 x) { return to_float(x); }

template <class T>
FASTNN_INLINE T from_compute(fastnn::Compute<T> x) {
  if constexpr (__is_same(T, BFloat16)) {
    return to_bfloat16(x);
  } else if constexpr (__is_same(T, Float16)) {
    return to_float16(x);
  } else {
    return x;
  }
}

// --- loads and stores: unaligned; `n` lanes when given, the others read as 0 ------------------------

template <class T>
FASTNN_INLINE Vec<T> load(const T* p) {
  Vec<T> r;
  __builtin_memcpy(&r.v, p, sizeof r.v);
  return r;
}
template <class T>
FASTNN_INLINE void store(T* p, Vec<T> a) {
  __builtin_memcpy(p, &a.v, sizeof a.v);
}

#if defined(__AVX512F__)
FASTNN_INLINE Vec<float> load(const float* p, int n) { return (Vec<float>::Raw)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p); }
FASTNN_INLINE Vec<double> load(const double* p, int n) { return (Vec<double>::Raw)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p); }
FASTNN_INLINE void store(float* p, Vec<float> a, int n) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)a.v); }
FASTNN_INLINE void store(double* p, Vec<double> a, int n) { _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)a.v); }
#elif defined(__AVX2__)
FASTNN_INLINE __m256i lanes_below(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
FASTNN_INLINE __m256i lanes_below_pd(int n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
FASTNN_INLINE Vec<float> load(const float* p, int n) { return (Vec<float>::Raw)_mm256_maskload_ps(p, lanes_below(n)); }
FASTNN_INLINE Vec<double> load(const double* p, int n) { return (Vec<double>::Raw)_mm256_maskload_pd(p, lanes_below_pd(n)); }
FASTNN_INLINE void store(float* p, Vec<float> a, int n) { _mm256_maskstore_ps(p, lanes_below(n), (__m256)a.v); }
FASTNN_INLINE void store(double* p, Vec<double> a, int n) { _mm256_maskstore_pd(p, lanes_below_pd(n), (__m256d)a.v); }
#else
template <class T>
FASTNN_INLINE Vec<T> load(const T* p, int n) {
  Vec<T> r(T(0));
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
template <class T>
FASTNN_INLINE void store(T* p, Vec<T> a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
#endif

FASTNN_INLINE Vec<float> load(const BFloat16* p) {
  Vec<float> r;
#if defined(__AVX512F__)
  r.v = (Vec<float>::Raw)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif defined(__AVX2__)
  r.v = (Vec<float>::Raw)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
  for (int i = 0; i < Vec<float>::N; ++i) r.v[i] = to_float(p[i]);
#endif
  return r;
}
FASTNN_INLINE Vec<float> load(const Float16* p) {
  Vec<float> r;
#if defined(__AVX512F__)
  r.v = (Vec<float>::Raw)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  r.v = (Vec<float>::Raw)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  for (int i = 0; i < Vec<float>::N; ++i) r.v[i] = to_float(p[i]);
#endif
  return r;
}
FASTNN_INLINE void store(BFloat16* p, Vec<float> a) {
#if defined(__AVX2__)
  // The vector form of to_bfloat16: add half of the last kept bit, ties to even; NaN made quiet.
  using U = Register<float>::Uint;
  const U bits = (U)a.v;
  const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U out = (U)isnan(a).v ? ((bits >> 16) | 0x40) : rounded;
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)out));
#else
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)out, (__m256i)out), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
#endif
#else
  for (int i = 0; i < Vec<float>::N; ++i) p[i] = to_bfloat16(a.v[i]);
#endif
}
FASTNN_INLINE void store(Float16* p, Vec<float> a) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)a.v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)a.v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < Vec<float>::N; ++i) p[i] = to_float16(a.v[i]);
#endif
}
template <class H>
FASTNN_INLINE Vec<float> load_half(const H* p, int n) {
  H lanes[Vec<float>::N] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <class H>
FASTNN_INLINE void store_half(H* p, Vec<float> a, int n) {
  H lanes[Vec<float>::N];
  store(lanes, a);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
FASTNN_INLINE Vec<float> load(const BFloat16* p, int n) { return load_half(p, n); }
FASTNN_INLINE Vec<float> load(const Float16* p, int n) { return load_half(p, n); }
FASTNN_INLINE void store(BFloat16* p, Vec<float> a, int n) { store_half(p, a, n); }
FASTNN_INLINE void store(Float16* p, Vec<float> a, int n) { store_half(p, a, n); }

// f(offset, lanes) over [0, n): full registers first (lanes == N, known to the compiler once inlined),
// then the rest. `load_n` and `store_n` take that count.
template <class V, class F>
FASTNN_INLINE void for_each_vec(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + V::N <= n; i += V::N) f(i, V::N);
  if (i < n) f(i, static_cast<int>(n - i));
}
template <class T>
FASTNN_INLINE Vec<fastnn::Compute<T>> load_n(const T* p, int n) {
  return n == Vec<fastnn::Compute<T>>::N ? load(p) : load(p, n);
}
template <class T>
FASTNN_INLINE void store_n(T* p, Vec<fastnn::Compute<T>> a, int n) {
  n == Vec<fastnn::Compute<T>>::N ? store(p, a) : store(p, a, n);
}

}  // namespace
