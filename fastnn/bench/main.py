"""`python -m fastnn bench`: limits of the machine, all cases, summary; exit code 1 when a row is wrong."""

from __future__ import annotations

import argparse
from typing import Any

from fastnn.bench import memory, table
from fastnn.bench.measure import measure, threads
from fastnn.bench.results import machine, write
from fastnn.testing.cases import bench_cases
from fastnn.testing.limits import Limits
from fastnn.testing.limits import measure as measure_limits
from fastnn.testing.progress import Progress
from fastnn.testing.timing import Budget

_BUDGET = Budget(seconds=0.4)
_QUICK = Budget(seconds=0.1, min_rounds=3)


def run(options: argparse.Namespace) -> int:
    """The command: prints as it measures, writes the files asked for."""
    if options.memory:
        return memory.run(options)
    cases = bench_cases(options.only, options.quick)
    if not cases:
        print(f"bench: no case matches {options.only!r}")
        return 2
    rows: list[dict[str, Any]] = []
    with threads(options.threads), Progress(len(cases), "bench", not options.no_progress) as bar:
        limits = measure_limits(options.quick)
        bar.print(_limits_text(limits))
        bar.print(table.head())
        for case in cases:
            bar.step(case.name)
            for row in measure(case, limits, _QUICK if options.quick else _BUDGET):
                rows.append(row.to_dict())
                bar.print(table.line(rows[-1]))
    result = {
        "section": "bench",
        "machine": machine(),
        "limits": {"peak": limits.peak, "bandwidth": limits.bandwidth, "threads": limits.threads},
        "families": table.summarise(rows),
        "rows": rows,
    }
    _report(result, options)
    return int(any(row["status"] != "ok" for row in rows))


def _limits_text(limits: Limits) -> str:
    cache = ", ".join(f"{rate / 1e9:.0f} at {size >> 10} KB" for size, rate in limits.bandwidth[:-1])
    return (
        f"{limits.threads} threads; measured peak {limits.peak / 1e9:.0f} GFLOP/s (float32), "
        f"memory {limits.memory / 1e9:.1f} GB/s (in cache {cache})\n"
        "milliseconds, medians; cl: channels_last input; ratio: torch over fastnn, above 1 fastnn is faster;\n"
        "limit: the least time that arithmetic or memory traffic takes, over fastnn's time\n"
    )


def _report(result: dict[str, Any], options: argparse.Namespace) -> None:
    rows = result["rows"]
    print("\n" + table.summary_text(result["families"]))
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    losses = sum(table.mark(row) == "loss" for row in rows)
    wrong = sum(row["status"] != "ok" for row in rows)
    if ratios:
        mean = table.geometric_mean(ratios)
        print(f"\nall {len(rows)} rows: geometric mean {mean:.2f}x, {losses} losses, {wrong} WRONG or ERROR")
    write(options, result, table.as_csv(rows))
