// The words of CUDA C++ that a kernel may use, in plain C++: qualifiers, and what is below.
#pragma once
#include <math.h>

#include "atomics.h"
#include "builtins.h"
#include "memory.h"
#include "numbers.h"
#include "warp.h"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
