"""`python -m fastnn bench`: limits of the machine, all cases, summary; exit code 1 when a row is wrong."""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

import fastnn
from fastnn.bench import table
from fastnn.bench.measure import measure, threads
from fastnn.testing.cases import bench_cases
from fastnn.testing.limits import Limits
from fastnn.testing.limits import measure as measure_limits
from fastnn.testing.progress import Progress
from fastnn.testing.timing import Budget

_BUDGET = Budget(seconds=0.4)
_QUICK = Budget(seconds=0.1, min_rounds=3)


def run(options: argparse.Namespace) -> int:
    """The command: prints as it measures, writes the files asked for."""
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
    for path, text in (
        (options.json, json.dumps(result, indent=1) + "\n"),
        (options.csv, table.as_csv(rows)),
    ):
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8")


def machine() -> dict[str, Any]:
    """What a result must say about where it was measured."""
    facts = fastnn.info()
    keys = ("fastnn", "torch", "python", "cpu capability")
    return {"cpu": cpu_name(), "date": time.strftime("%Y-%m-%d"), **{key: facts[key] for key in keys}}


def cpu_name() -> str:
    """The processor's name and torch's instruction set."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
