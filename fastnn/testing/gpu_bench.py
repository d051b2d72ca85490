"""Stages ceilings and bench: what the GPU can do at most, and fastnn beside torch, each row as a share of that.

Sides run in turn, one call at a time between two CUDA events; medians are compared. Working sets leave the caches, so
nothing has to be flushed. torch gets the same layout and precision flags, and cuDNN its benchmark mode.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch

from fastnn.testing.cases import Case
from fastnn.testing.compare import strict
from fastnn.testing.cost import work_of
from fastnn.testing.gpu_cases import large_cases, large_inputs

Run = Callable[[], object]
PASSES = ("forward", "forward+backward")
_DTYPES = ("float32", "bfloat16")


def interleaved(sides: dict[str, Run], milliseconds: float = 300, least: int = 10) -> dict[str, list[float]]:
    """Milliseconds of each call: the sides in turn, in alternating order, after two calls of each."""
    for _ in range(2):
        for run in sides.values():
            run()
    torch.cuda.synchronize()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    spent, rounds = 0.0, 0
    while rounds < least or (spent < milliseconds and rounds < 100):
        marks = {}
        for name in sorted(sides, reverse=bool(rounds % 2)):
            marks[name] = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            marks[name][0].record()
            sides[name]()
            marks[name][1].record()
        torch.cuda.synchronize()
        for name, (start, end) in marks.items():
            samples[name].append(start.elapsed_time(end))
            spent += samples[name][-1]
        rounds += 1
    return samples


def _median(run: Run) -> float:
    """Seconds of one call."""
    return statistics.median(interleaved({"": run})[""]) / 1e3


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy of 1 GiB."""
    x = torch.randn(2**28, device="cuda")
    return 2 * x.numel() * x.element_size() / _median(functools.partial(torch.empty_like(x).copy_, x))


def ceilings(out: Any) -> None:
    """Bytes per second of a copy, operations per second of cuBLAS at 8192^3; random numbers, as zeros run faster."""
    out.row(what="copy", value=copy_bandwidth(), unit="B/s", status="ok")
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"), ("tf32", torch.float32, "high"), ("fp32", torch.float32, "highest"),
    ):  # fmt: skip
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        seconds = _median(functools.partial(torch.mm, a, b))
        out.row(what=f"cuBLAS {name} 8192^3", value=2 * 8192**3 / seconds, unit="FLOP/s", status="ok")
    torch.set_float32_matmul_precision("highest")


def _forward(case: Case, module: torch.nn.Module, inputs: list[torch.Tensor]) -> Run:
    def run() -> object:
        with torch.no_grad():
            return module(*inputs, **case.call)

    return run


def _training(case: Case, module: torch.nn.Module, inputs: list[torch.Tensor]) -> Run:
    x = inputs[0].detach().requires_grad_()
    wanted = [x, *module.parameters()]
    dy = torch.randn_like(module(x, *inputs[1:], **case.call))

    def run() -> object:
        return torch.autograd.grad(module(x, *inputs[1:], **case.call), wanted, dy)

    return run


def rows_of(case: Case, dtype: str, channels_last: bool, bandwidth: float) -> list[dict[str, Any]]:
    """A row per pass: median milliseconds of both sides, their ratio, the share of the copy bandwidth, the spread."""
    kind = getattr(torch, dtype)
    inputs = large_inputs(case, kind, channels_last)
    modules = {side: case.build(side).to("cuda", kind) for side in ("torch", "fastnn")}
    modules["fastnn"].load_state_dict(modules["torch"].state_dict())
    work = work_of(case, inputs)
    scale = inputs[0].element_size() / 4  # cost.py counts float32
    forward = sum(w.forward.bytes for w in work) * scale
    needed = (forward, forward + sum(w.backward.bytes for w in work) * scale)
    rows = []
    for name, make, size in zip(PASSES, (_forward, _training), needed, strict=True):
        with strict():
            samples = interleaved({side: make(case, module, inputs) for side, module in modules.items()})
        ours, theirs = (statistics.median(samples[side]) for side in ("fastnn", "torch"))
        quartiles = statistics.quantiles(samples["fastnn"], n=4)
        rows.append({
            "family": case.family, "case": case.name, "dtype": dtype, "channels_last": channels_last, "pass": name,
            "fastnn_ms": ours, "torch_ms": theirs, "ratio": theirs / ours,
            "of_ceiling": size / (ours / 1e3) / bandwidth if bandwidth else None,
            "spread": (quartiles[2] - quartiles[0]) / ours, "status": "ok",
        })  # fmt: skip
    return rows


def bench(out: Any) -> None:
    """Every large case in two dtypes and its layouts, until the time is over."""
    torch.backends.cudnn.benchmark = True
    bandwidth = copy_bandwidth()
    for case in large_cases():
        for dtype in _DTYPES:
            for channels_last in (False, True) if len(case.shape) in (4, 5) else (False,):
                if out.over():
                    return
                row = {
                    "family": case.family,
                    "case": case.name,
                    "dtype": dtype,
                    "channels_last": channels_last,
                }
                try:
                    for found in rows_of(case, dtype, channels_last, bandwidth):
                        out.row(**found)
                except Exception as error:
                    fallback = "fastnn.strict:" in str(error)
                    note = f"{type(error).__name__}: {error}"[:300]
                    out.row(**row, status="fallback" if fallback else "ERROR", note=note)
                torch.cuda.empty_cache()
