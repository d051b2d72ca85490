"""What a call cannot do without: arithmetic operations and bytes of memory traffic, by formula per family.

x, y: bytes of the layer's input and output; p: of its parameters. Forward reads x and p and writes y once.
Backward reads dy and whatever the formula of the layer needs, and writes dx and dp:

    family                            forward          backward
    linear, conv (operations)         2 y taps         the same for dx (if wanted) and for dw
    linear, conv (bytes)              x + p + y        dy + x + p + dx + p
    attention                         as linear, with the projections and two products of queries and keys
    recurrent layers                  as linear, every weight used once per step and sequence
    max pooling                       x + y            dy + one byte per output + dx
    other pooling, Flatten, Identity  x + y            dy + dx
    relu-like activations             x + y            dy + one bit per element + dx
    embeddings                        rows + y         dy + p (rows: those that the indices name)
    NLLLoss                           one x a row      dx
    dropout                           x + y            dy + dx (the mask is drawn again)
    norms, other activations          x + p + y        dy + x + p + dx + p

Taps: how many inputs an output sums over. Operations of element-wise layers are not counted: bytes decide there.
Convolutions count as direct ones, so Winograd may exceed the limit. A network is the sum of its layers, so a fusion may
too. `Limits.floor` takes the bandwidth for the size of the traffic: what stays in a cache is faster than memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fastnn.testing.cases import Case
from fastnn.testing.limits import Limits
from fastnn.testing.networks import ScaledDotProduct

_ITEM = 4  # bytes of a float32
_MASKED = (
    torch.nn.ReLU, torch.nn.ReLU6, torch.nn.LeakyReLU, torch.nn.Hardtanh, torch.nn.Threshold, torch.nn.Softshrink,
    torch.nn.Hardshrink,
)  # fmt: skip
_MAXIMA = (
    torch.nn.MaxPool1d, torch.nn.MaxPool2d, torch.nn.MaxPool3d,
    torch.nn.AdaptiveMaxPool1d, torch.nn.AdaptiveMaxPool2d, torch.nn.AdaptiveMaxPool3d,
)  # fmt: skip
_MEMORYLESS = (
    torch.nn.AvgPool1d, torch.nn.AvgPool2d, torch.nn.AvgPool3d,
    torch.nn.AdaptiveAvgPool1d, torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveAvgPool3d,
    torch.nn.modules.dropout._DropoutNd,
)  # fmt: skip
_FREE = (torch.nn.Flatten, torch.nn.Identity)


@dataclass(frozen=True)
class Cost:
    """Operations and bytes of one pass of one layer."""

    operations: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """A layer: its forward and its backward."""

    forward: Cost
    backward: Cost


def _layer(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, input_gradient: bool) -> Work:
    x_bytes, y_bytes = x.numel() * _ITEM, y.numel() * _ITEM
    p_bytes = sum(p.numel() for p in module.parameters()) * _ITEM
    dx_bytes = x_bytes if input_gradient else 0
    operations = 2.0 * _multiplications(module, x, y)
    forward = Cost(operations, x_bytes + p_bytes + y_bytes)
    if isinstance(module, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
        rows = x.numel() * module.embedding_dim * _ITEM
        return Work(Cost(0, rows + y_bytes), Cost(0, y_bytes + p_bytes))
    if isinstance(module, torch.nn.NLLLoss):  # one number of a row counts, the others' gradients are 0
        return Work(Cost(0, x_bytes / x.shape[1]), Cost(0, dx_bytes))
    if isinstance(module, _FREE):
        return Work(Cost(0, 0), Cost(0, 0))
    if isinstance(module, _MAXIMA):
        saved: float = y.numel()
    elif isinstance(module, _MEMORYLESS):
        saved = 0
    elif isinstance(module, _MASKED):
        saved = x.numel() / 8
    else:
        saved = x_bytes + 2 * p_bytes
    return Work(forward, Cost(operations * (2 if input_gradient else 1), y_bytes + saved + dx_bytes))


def _multiplications(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    if isinstance(module, torch.nn.Linear):
        return y.numel() * module.in_features
    if isinstance(module, torch.nn.MultiheadAttention):
        length = x.shape[1 if module.batch_first and x.dim() == 3 else 0]
        return y.numel() * (4 * module.embed_dim + 2 * length)
    if isinstance(module, torch.nn.RNNBase):
        return x.numel() / x.shape[-1] * sum(p.numel() for p in module.parameters() if p.dim() == 2)
    if isinstance(module, ScaledDotProduct):
        return y.numel() * x.shape[1] * 2
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        taps = module.in_channels // module.groups * math.prod(module.kernel_size)
        if module.transposed:
            return x.numel() * module.out_channels // module.groups * math.prod(module.kernel_size)
        return y.numel() * taps
    return 0


def work_of(case: Case, inputs: list[torch.Tensor] | None = None) -> list[Work]:
    """The layers of the case in the order of their calls, found by one forward on torch's meta device.

    inputs: those of the call, on any device, where making them anew would take long.
    """
    module = case.build("torch").to("meta")
    found: list[Work] = []

    def note(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        wanted = not case.is_network or bool(found)
        y = output[0] if isinstance(output, tuple) else output
        found.append(_layer(layer, inputs[0].data, y.data, wanted))  # of packed sequences, too

    for layer in module.modules():
        if isinstance(layer, torch.nn.MultiheadAttention) or not list(layer.children()):
            layer.register_forward_hook(note)
    with torch.no_grad():
        module(*(t.to("meta") for t in inputs or case.inputs()))
    return found


def floors(case: Case, limits: Limits) -> tuple[float, float]:
    """Seconds that forward, and forward plus backward, need at least at these limits."""
    work = work_of(case)
    forward = sum(limits.floor(w.forward.operations, w.forward.bytes) for w in work)
    backward = sum(limits.floor(w.backward.operations, w.backward.bytes) for w in work)
    return forward, forward + backward
