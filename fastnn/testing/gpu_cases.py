"""The shared cases as a GPU needs them: inputs made or moved there, batches large enough to leave its caches."""

from __future__ import annotations

import dataclasses
import math

import torch

from fastnn.testing.cases import Case, bench_cases, parity_cases

# Families with CUDA kernels; the others run torch's ops on a GPU and would be compared with themselves.
FAMILIES = (
    "activation",
    "dropout",
    "softmax",
    "batchnorm",
    "normalization",
    "pooling",
    "loss",
    "linear",
    "conv",
)
LARGE = 2**26  # numbers: 256 MiB of float32, several times the second cache of any GPU


def smoke_cases() -> list[Case]:
    """Every parity case of the families, those that other cases resemble last: a cut leaves the broad half."""
    cases = [case for case in parity_cases() if case.family in FAMILIES]
    seen: dict[str, int] = {}
    order: list[tuple[int, int]] = []
    for case in cases:
        seen[case.layer] = seen.get(case.layer, 0) + 1
        order.append((seen[case.layer], len(order)))
    return [cases[i] for _, i in sorted(order)]


def large_cases() -> list[Case]:
    """The bench cases with batches of LARGE numbers, each once; the quick ones, which stand for their family, first."""
    found: dict[str, Case] = {}
    for case in bench_cases():
        if case.family not in FAMILIES:
            continue
        times = max(1, math.ceil(LARGE / math.prod(case.shape)))
        large = dataclasses.replace(case, shape=(case.shape[0] * times, *case.shape[1:]))
        found.setdefault(large.name, large)
    return sorted(found.values(), key=lambda case: not case.quick)


def large_inputs(case: Case, dtype: torch.dtype, channels_last: bool) -> list[torch.Tensor]:
    """Random inputs of the case, drawn on the device."""
    generator = torch.Generator("cuda").manual_seed(1)
    layout = torch.contiguous_format
    if channels_last:
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}[len(case.shape)]

    def draw() -> torch.Tensor:
        x = torch.randn(case.shape, device="cuda", dtype=dtype, generator=generator)
        return x.contiguous(memory_format=layout)

    inputs = [draw()]
    if case.classes:
        positions = case.shape[:1] + case.shape[2:]
        inputs.append(torch.randint(case.classes, positions, device="cuda", generator=generator))
    if case.paired:
        inputs.append(draw().sigmoid_())
    return inputs
