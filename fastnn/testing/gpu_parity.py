"""Stage parity: every case on the GPU beside torch there and float64 on the CPU, by the rule of `compare.py`.

Fresh tensors hold NaN, so a number that no kernel wrote shows; each call runs twice and must give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch

from fastnn.testing import compare
from fastnn.testing.cases import Case, layouts_of, moved
from fastnn.testing.gpu_cases import smoke_cases

_FALLBACK = "fastnn.strict:"  # torch's op ran: in place, or no kernel


def _fill_fresh_tensors() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def _same_bits(case: Case, dtype: str, layout: str) -> bool:
    """Two runs of one module on the same inputs; the random ones from the same seed."""
    module = case.build("fastnn").to("cuda", getattr(torch, dtype))
    inputs = [moved(x, "cuda") for x in case.inputs(dtype, layout)]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    found = []
    for _ in range(2):
        module.load_state_dict(state)
        torch.manual_seed(5)
        _, result = compare.run_module(case, module, inputs)
        found.append({**result.outputs, **result.gradients, **result.buffers})
    # As bytes: a NaN is equal to itself.
    return all(
        torch.equal(a.contiguous().view(torch.uint8), found[1][name].contiguous().view(torch.uint8))
        for name, a in found[0].items()
        if a.numel() and a.dim()
    )


def _row(case: Case, dtype: str, layout: str) -> dict[str, Any]:
    row: dict[str, Any] = {"family": case.family, "case": case.name, "dtype": dtype, "layout": layout}
    try:
        verdict = compare.check(case, dtype, layout, native=True, device="cuda")
        wrong = [str(check) for check in verdict.checks if not check.ok]
        if any(_FALLBACK in text for text in wrong):
            return {**row, "status": "fallback", "note": wrong[0][:200]}
        if not wrong and not _same_bits(case, dtype, layout):
            wrong = ["two runs differ"]
        return {
            **row,
            "status": "WRONG" if wrong else "ok",
            "worst": verdict.worst,
            "note": "; ".join(wrong)[:300],
        }
    except Exception as error:
        return {**row, "status": "ERROR", "note": f"{type(error).__name__}: {error}"[:300]}


def parity(out: Any) -> None:
    """Every case, dtype and layout, until the time is over."""
    _fill_fresh_tensors()
    for case in smoke_cases():
        for dtype in case.dtypes:
            for layout in layouts_of(case):
                if out.over():
                    return
                out.row(**_row(case, dtype, layout))


def sanitized(out: Any) -> None:
    """What compute-sanitizer watches: the first case of each layer, the layouts with their own kernels, two dtypes."""
    layers = set()
    for case in smoke_cases():
        if case.layer in layers:
            continue
        layers.add(case.layer)
        for dtype in ("float32", "bfloat16"):
            for layout in layouts_of(case):
                if out.over():
                    return
                if dtype in case.dtypes and layout in ("contiguous", "offset", "channels_last"):
                    out.row(**_row(case, dtype, layout))
