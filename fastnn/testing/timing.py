"""Interleaved timing: several sides in turn in one process, so that noise and clock changes hit all of them.

Every side is warmed up, then rounds follow; in each round every side runs one block of calls that is long enough for
the clock. The order rotates from round to round and the garbage collector is off. The medians of the rounds are
what is compared.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and quartiles over `rounds` rounds of `calls` calls each."""

    median: float
    low: float
    high: float
    rounds: int
    calls: int


@dataclass(frozen=True)
class Budget:
    """How long to measure. seconds: per side; block: shortest block in seconds; rounds: fewest and most."""

    seconds: float = 0.4
    block: float = 1e-3
    min_rounds: int = 5
    max_rounds: int = 200


def _block(run: Run, calls: int) -> float:
    """Seconds per call over one block."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _warm_up(run: Run, budget: Budget) -> float:
    """Runs the side until a tenth of its budget is used, twice at least; returns the fastest call in seconds."""
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 2 or (spent < budget.seconds / 10 and calls < 1000):
        seconds = _block(run, 1)
        best, spent, calls = min(best, seconds), spent + seconds, calls + 1
    return best


def interleave(sides: Mapping[str, Run], budget: Budget | None = None) -> dict[str, Timing]:
    """Times every side of the mapping in turn; see the module's docstring."""
    budget = budget or Budget()
    estimates = {name: _warm_up(run, budget) for name, run in sides.items()}
    calls = {name: max(1, min(10_000, round(budget.block / t))) for name, t in estimates.items()}
    round_seconds = sum(estimates[name] * calls[name] for name in sides)
    wanted = int(budget.seconds * len(sides) / max(round_seconds, 1e-9))
    rounds = max(budget.min_rounds, min(budget.max_rounds, wanted))
    order = list(sides)
    samples: dict[str, list[float]] = {name: [] for name in sides}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for i in range(rounds):
            start = i % len(order)
            for name in order[start:] + order[:start]:
                samples[name].append(_block(sides[name], calls[name]))
    finally:
        if enabled:
            gc.enable()
    return {name: _summary(values, calls[name]) for name, values in samples.items()}


def _summary(samples: list[float], calls: int) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high, len(samples), calls)
