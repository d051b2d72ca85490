"""The short commands of `python -m fastnn`: info, explain, check. Each returns the exit code."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from pathlib import Path

import torch

import fastnn
from fastnn.testing import cases, compare
from fastnn.testing.progress import Progress


def info(options: argparse.Namespace) -> int:
    facts = fastnn.info()
    print(
        json.dumps(facts, indent=2)
        if options.json
        else importlib.import_module("fastnn.info").format_info(facts)
    )
    return 0


def explain(options: argparse.Namespace) -> int:
    module_name, _, name = options.model.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    model = getattr(importlib.import_module(module_name), name)
    if not isinstance(model, torch.nn.Module):
        model = model()
    model.train(not options.eval)
    inputs = [torch.randn([int(size) for size in shape.split("x")]) for shape in options.shape]
    print(fastnn.explain(model, *inputs))
    return 0


def check(options: argparse.Namespace) -> int:
    """Every parity case against float64; prints what is wrong and one line per family. Exit code 1 when wrong."""
    chosen = cases.parity_cases(options.only)
    totals: dict[str, list[int]] = {}
    with Progress(len(chosen), "check") as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in chosen:
            bar.step(case.name)
            for dtype in options.dtype or ["float32"]:
                if dtype not in case.dtypes:
                    continue
                for layout in cases.layouts_of(case) if options.layouts else ["contiguous"]:
                    verdict = compare.check(case, dtype, layout, native=options.strict)
                    total = totals.setdefault(case.family, [0, 0])
                    total[verdict.ok] += 1
                    if not verdict.ok:
                        bar.print(str(verdict))
    for family, (wrong, right) in totals.items():
        print(f"{family:12} {right} right, {wrong} wrong")
    return int(any(wrong for wrong, _ in totals.values()))
