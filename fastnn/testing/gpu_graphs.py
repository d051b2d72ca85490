"""Stage graphs: a training step captured in a CUDA graph and replayed on new numbers, and one on a side stream."""

from __future__ import annotations

from typing import Any

import torch

from fastnn.testing.cases import Case, moved
from fastnn.testing.compare import incoming_gradient, strict
from fastnn.testing.gpu_cases import smoke_cases


def _step(
    case: Case, module: torch.nn.Module, inputs: list[torch.Tensor], dy: torch.Tensor
) -> list[torch.Tensor]:
    """The outputs and gradients of one training step."""
    y = module(*inputs, **case.call)
    y = y[0] if isinstance(y, tuple) else y
    wanted = [t for t in (inputs[0], *module.parameters()) if t.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, dy)]


def _close(a: list[torch.Tensor], b: list[torch.Tensor]) -> str:
    same = all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    return "" if same else "other bits than eagerly"


def _check(case: Case) -> str:
    """What is wrong, or ""."""
    module = case.build("fastnn").cuda()
    inputs = [moved(x, "cuda") for x in case.inputs()]
    inputs[0].requires_grad_()
    dy = incoming_gradient(module(*inputs, **case.call).detach())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), strict():
        for _ in range(2):  # what is loaded or measured at the first call
            on_side = _step(case, module, inputs, dy)
    torch.cuda.current_stream().wait_stream(side)
    if case.random:
        on_side = []
    elif fault := _close(on_side, _step(case, module, inputs, dy)):
        return f"side stream: {fault}"
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _step(case, module, inputs, dy)
    with torch.no_grad():
        inputs[0].copy_(inputs[0].flip(-1))
    graph.replay()
    torch.cuda.synchronize()
    if not case.random:
        return _close(captured, _step(case, module, inputs, dy))
    before = captured[0].clone()
    graph.replay()
    return "" if not torch.equal(before, captured[0]) else "a replay draws the same numbers again"


def graphs(out: Any) -> None:
    """The first differentiable case of each layer, in float32 without running statistics, which a step would move."""
    layers = set()
    for case in smoke_cases():
        tracks = any(key in case.kwargs for key in ("momentum", "track_running_stats", "return_indices"))
        if out.over():
            return
        if case.layer in layers or case.inplace or tracks or 0 in case.shape or case.layer.startswith("Lazy"):
            continue
        layers.add(case.layer)
        row = {"family": case.family, "case": case.name}
        try:
            fault = _check(case)
            out.row(**row, status="WRONG" if fault else "ok", note=fault)
        except Exception as error:
            fallback = "fastnn.strict:" in str(error)
            out.row(
                **row,
                status="fallback" if fallback else "ERROR",
                note=f"{type(error).__name__}: {error}"[:300],
            )
            if not fallback:
                torch.cuda.synchronize()
