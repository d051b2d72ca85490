"""Errors of a convolution by algorithm and direction against float64: a section of docs/accuracy.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import conv2d

import fastnn
from fastnn.backends import conv as switches
from fastnn.testing.compare import strict

# Inputs of 3x3 convolutions with as many channels out.
SHAPES = ((4, 32, 28, 28), (4, 128, 28, 28), (4, 512, 14, 14))
DIRECTIONS = ("y", "dx", "dw")
Tensors = list[torch.Tensor]
Numbers = tuple[float, float]  # root mean square and largest error, of the result's root mean square


def _powers(n: int, generator: torch.Generator) -> torch.Tensor:
    """n factors from 1e-3 to 1e3, drawn."""
    return 10 ** (6 * torch.rand(n, generator=generator) - 3)


def _ill_channels(tensors: Tensors, generator: torch.Generator) -> Tensors:
    """Channels of x are of many sizes, the weight makes up for them; so are those of dy."""
    x, w, dy = tensors
    a, b = _powers(x.size(1), generator).view(-1, 1, 1), _powers(dy.size(1), generator).view(-1, 1, 1)
    return [x * a, w / a / b.unsqueeze(-1), dy * b]


def _ill_pixels(tensors: Tensors, generator: torch.Generator) -> Tensors:
    """Neighbours in an image are of many sizes."""
    x, w, dy = tensors
    a, b = (_powers(t[:, :1].numel(), generator).view_as(t[:, :1]) for t in (x, dy))
    return [x * a, w, dy * b]


INPUTS: dict[str, Callable[[Tensors, torch.Generator], Tensors]] = {
    "normal": lambda t, _: t,
    "positive": lambda t, _: [v.abs() for v in t],
    "mean 100": lambda t, _: [t[0] + 100, t[1], t[2] + 100],
    "ill-scaled channels": _ill_channels,
    "ill-scaled pixels": _ill_pixels,
}


def _results(conv: Callable[..., torch.Tensor], tensors: Tensors, dtype: torch.dtype) -> Tensors:
    x, w, dy = (t.to(dtype) for t in tensors)
    x.requires_grad_()
    w.requires_grad_()
    y = conv(x, w, padding=1)
    return [y.detach(), *torch.autograd.grad(y, [x, w], dy)]


def _ours(tensors: Tensors, winograd: bool) -> Tensors:
    before, switches.winograd = switches.winograd, winograd
    try:
        with strict():
            return _results(fastnn.functional.conv2d, tensors, torch.float32)
    finally:
        switches.winograd = before


def _errors(values: torch.Tensor, reference: torch.Tensor) -> Numbers:
    error, scale = values.double() - reference, float(reference.square().mean().sqrt())
    return float(error.square().mean().sqrt()) / scale, float(error.abs().max()) / scale


def measure() -> Iterator[tuple[str, str, str, list[Numbers]]]:
    """Channels and size, inputs, direction, and the errors of direct sums, Winograd's and torch's."""
    generator = torch.Generator().manual_seed(0)
    for n, c, h, w in SHAPES:
        for name, change in INPUTS.items():
            normal = [torch.randn(s, generator=generator) for s in ((n, c, h, w), (c, c, 3, 3), (n, c, h, w))]
            tensors = [t.contiguous() for t in change(normal, generator)]
            exact = _results(conv2d, tensors, torch.float64)
            sides = [
                _ours(tensors, False),
                _ours(tensors, True),
                _results(conv2d, tensors, torch.float32),
            ]
            for i, direction in enumerate(DIRECTIONS):
                yield f"{c}, {h}x{w}", name, direction, [_errors(side[i], exact[i]) for side in sides]


def _cells(numbers: Numbers) -> str:
    return f"{1e7 * numbers[0]:.1f} ({1e7 * numbers[1]:.0f})"


def section() -> list[str]:
    """The lines of the section."""
    lines = [
        "",
        "# Accuracy of convolutions",
        "",
        "3x3, padding 1, float32, as many channels out as in; against float64. Error in 1e-7 of the root mean square of the",
        "exact result: root mean square of the errors (in brackets the largest). Winograd is F(4x4, 3x3), for dw F(3x3, 4x4);",
        "direct is what runs with `fastnn.backends.conv.winograd = False`.",
        "",
        "Of normal numbers Winograd's error is 2 to 2.5 times torch's, and some 3 times that of fastnn's direct sums, which are",
        "a little closer than torch's; of numbers of one sign they are alike. The weight's gradient is as close as torch's, to",
        "a third. All is measured by the whole result: beside a pixel a million times larger, Winograd loses the digits of a",
        "small result that direct sums keep, for the rounding of a tile is that of its largest value.",
        "",
        "| channels, image | inputs | | direct | Winograd | torch |",
        "|---|---|---|--:|--:|--:|",
    ]
    return lines + [
        f"| {shape} | {name} | {direction} | " + " | ".join(map(_cells, numbers)) + " |"
        for shape, name, direction, numbers in measure()
    ]
