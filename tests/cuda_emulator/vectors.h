// CUDA's vector types, with the alignment that its wide loads and stores demand.
#pragma once

#define FASTNN_VECTORS(T, name)                                \
  struct name##1 {                                             \
    T x;                                                       \
  };                                                           \
  struct alignas(2 * sizeof(T)) name##2 {                      \
    T x, y;                                                    \
  };                                                           \
  struct name##3 {                                             \
    T x, y, z;                                                 \
  };                                                           \
  struct alignas(sizeof(T) < 8 ? 4 * sizeof(T) : 16) name##4 { \
    T x, y, z, w;                                              \
  };                                                           \
  inline name##1 make_##name##1(T x) {                         \
    return {x};                                                \
  }                                                            \
  inline name##2 make_##name##2(T x, T y) {                    \
    return {x, y};                                             \
  }                                                            \
  inline name##3 make_##name##3(T x, T y, T z) {               \
    return {x, y, z};                                          \
  }                                                            \
  inline name##4 make_##name##4(T x, T y, T z, T w) {          \
    return {x, y, z, w};                                       \
  }
FASTNN_VECTORS(signed char, char)
FASTNN_VECTORS(unsigned char, uchar)
FASTNN_VECTORS(short, short)
FASTNN_VECTORS(unsigned short, ushort)
FASTNN_VECTORS(int, int)
FASTNN_VECTORS(unsigned int, uint)
FASTNN_VECTORS(long long, longlong)
FASTNN_VECTORS(unsigned long long, ulonglong)
FASTNN_VECTORS(float, float)
FASTNN_VECTORS(double, double)
#undef FASTNN_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
