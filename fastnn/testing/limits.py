"""The physical limits of this machine, measured: FMA peak and memory bandwidth.

Both are measured with torch's current number of threads. A case's floor is its operations over the peak or its
bytes over the bandwidth, whichever takes longer; what the formulas count is in `cost.py`.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Working sets of the bandwidth curve in bytes: private cache, shared cache, memory.
_SETS = tuple(2**power for power in (18, 20, 22, 24, 26, 29))


@dataclass(frozen=True)
class Limits:
    """peak: float32 operations per second, a fused multiply-add counts as two.

    bandwidth: (working set in bytes, bytes read and written per second), growing sets; the last one is main memory.
    """

    peak: float
    bandwidth: tuple[tuple[int, float], ...]
    threads: int

    @property
    def memory(self) -> float:
        """Bytes per second, read and written, on arrays far larger than the private caches."""
        return self.bandwidth[-1][1]

    def bandwidth_at(self, size: float) -> float:
        """Bytes per second for a working set of `size` bytes, between the measured sizes on a log scale."""
        sizes = [math.log2(s) for s, _ in self.bandwidth]
        rates = [rate for _, rate in self.bandwidth]
        position = math.log2(max(size, 1.0))
        if position <= sizes[0]:
            return rates[0]
        for (x0, y0), (x1, y1) in itertools.pairwise(zip(sizes, rates, strict=True)):
            if position <= x1:
                return y0 + (y1 - y0) * (position - x0) / (x1 - x0)
        return rates[-1]

    def floor(self, operations: float, size: float) -> float:
        """Seconds that `operations` arithmetic operations and `size` bytes of traffic need at least."""
        return max(operations / self.peak, size / self.bandwidth_at(size))


def _best(run: Callable[[], object], seconds: float, least: int = 3) -> float:
    """Seconds of the fastest call within the time given."""
    best, spent, calls = float("inf"), 0.0, 0
    while calls < least or spent < seconds:
        start = time.perf_counter()
        run()
        elapsed = time.perf_counter() - start
        best, spent, calls = min(best, elapsed), spent + elapsed, calls + 1
    return best


def measure_peak(seconds: float = 1.0) -> float:
    """Operations per second of the best large float32 matrix product: what is left of the FMA peak in practice."""
    best = float("inf")
    with torch.no_grad():
        for size in (1024, 2048):
            a, b = torch.randn(size, size), torch.randn(size, size)
            out = torch.empty(size, size)
            product = functools.partial(torch.mm, a, b, out=out)
            per_operation = _best(product, seconds / 2) / (2 * size**3)
            best = min(best, per_operation)
    return 1.0 / best


def measure_bandwidth(size: int, seconds: float = 0.15) -> float:
    """Bytes per second, read plus written, of the faster of copy and triad; all arrays together `size` bytes."""
    n = size // 12
    x, y, z = (torch.ones(n) for _ in range(3))
    half = size // 8
    source, target = torch.ones(half), torch.ones(half)
    with torch.no_grad():
        copy = 2 * half * 4 / _best(lambda: target.copy_(source), seconds / 2)
        triad = 3 * n * 4 / _best(lambda: torch.add(x, y, alpha=0.5, out=z), seconds / 2)
    return max(copy, triad)


def measure(quick: bool = False) -> Limits:
    """All limits of this machine at torch's current thread count; about two seconds, `quick` under one."""
    share = 0.3 if quick else 1.0
    rates = [measure_bandwidth(size, 0.3 * share) for size in _SETS]
    # A smaller working set cannot be slower: where it looks so, another process or a barrier was in the way.
    curve = tuple((size, max(rates[i:])) for i, size in enumerate(_SETS))
    return Limits(measure_peak(1.0 * share), curve, torch.get_num_threads())
