// Which inputs a pooling window reads and which windows read an input, one dimension at a time.
// Anonymous namespace: also compiled into the files of every instruction set, which may share no function.
#pragma once
#include "fastnn/pooling.h"

namespace {

struct PoolWindow {
  int64_t begin;   // input position of tap 0, may be negative
  int64_t lo, hi;  // taps [lo, hi) lie inside the input
};

struct PoolRange {
  int64_t begin, end;
};

// Strides of 1 and 2 are nearly all there are, and a division costs as much as a row of a small picture.
inline int64_t floor_div(int64_t a, int64_t b) {
  if (b == 1) return a;
  if (b == 2) return a >> 1;
  return a >= 0 ? a / b : -((b - 1 - a) / b);
}
inline int64_t floor_mod(int64_t a, int64_t b) {
  return a - floor_div(a, b) * b;
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return -floor_div(-a, b);
}
inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

inline int64_t tap_count(const fastnn::PoolShape& s) {
  return s.kernel[0] * s.kernel[1] * s.kernel[2];
}

inline PoolWindow pool_window(const fastnn::PoolShape& s, int dim, int64_t o) {
  if (s.adaptive) {
    const int64_t begin = o * s.in[dim] / s.out[dim];
    return {begin, 0, ceil_div((o + 1) * s.in[dim], s.out[dim]) - begin};
  }
  const int64_t begin = o * s.stride[dim] - s.padding[dim];
  const int64_t lo = begin < 0 ? ceil_div(-begin, s.dilation[dim]) : 0;
  return {begin, lo, smaller(s.kernel[dim], larger(lo, ceil_div(s.in[dim] - begin, s.dilation[dim])))};
}

// What a mean divides by, this dimension's factor. Padding counts on both sides, the overhang that
// ceil_mode allows beyond it does not.
inline int64_t pool_count(const fastnn::PoolShape& s, int dim, int64_t o, bool include_pad) {
  const PoolWindow w = pool_window(s, dim, o);
  if (s.adaptive || !include_pad) return larger(w.hi - w.lo, 1);
  return larger(smaller(w.begin + s.kernel[dim], s.in[dim] + s.padding[dim]) - w.begin, 1);
}

// The outputs whose window spans input position i.
inline PoolRange pool_covering(const fastnn::PoolShape& s, int dim, int64_t i) {
  if (s.adaptive) return {i * s.out[dim] / s.in[dim], ceil_div((i + 1) * s.out[dim], s.in[dim])};
  const int64_t extent = (s.kernel[dim] - 1) * s.dilation[dim] + 1, at = i + s.padding[dim];
  return {larger(0, ceil_div(at - extent + 1, s.stride[dim])),
          smaller(s.out[dim], floor_div(at, s.stride[dim]) + 1)};
}

// The most outputs that one input can have.
inline int64_t pool_overlap(const fastnn::PoolShape& s, int dim) {
  if (s.adaptive) return s.out[dim] / s.in[dim] + 2;
  return (s.kernel[dim] - 1) * s.dilation[dim] / s.stride[dim] + 1;
}

// The tap at which window o reads input position i, or -1 where i falls between two taps.
inline int64_t pool_tap(const fastnn::PoolShape& s, int dim, int64_t o, int64_t i) {
  const int64_t at = i - pool_window(s, dim, o).begin;
  return floor_mod(at, s.dilation[dim]) == 0 ? floor_div(at, s.dilation[dim]) : -1;
}

}  // namespace
