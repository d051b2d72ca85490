"""Largest error of every activation in units of the last place, beside torch's: `python benchmarks/accuracy.py`.

Writes docs/accuracy.md, with the convolutions of accuracy_conv.py.

float32 inputs of all exponents, subnormal ones too, and both signs; the incoming gradient is 1.
The reference is written below in float64, in forms that lose no digits (torch's float64 ops do: tanhshrink of 1e-9 is 0
there). A unit is the spacing of float32 at the reference's value. An infinity where the reference is a float32, or a NaN,
counts as an infinite error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accuracy_conv import section

from fastnn.bench.results import machine
from fastnn.testing.cases import library
from fastnn.testing.compare import strict

PAGE = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
LIMIT = 4.0  # units, forward; more, and more than torch's, is a finding
PER_EXPONENT = 4096
Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Activation:
    """A layer with its forward and derivative in float64."""

    layer: str
    forward: Function
    derivative: Function
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        arguments = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.layer}({', '.join(arguments)})"


def _softplus(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def _tanhshrink(x: torch.Tensor) -> torch.Tensor:
    """x - tanh(x); for small x from its series, to x^13: 1e-17 of the result at |x| = 0.05."""
    s = x * x
    series = 0.0
    for c in (21844 / 6081075, -1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3):
        series = series * s - c
    return torch.where(x.abs() < 0.05, x * s * series, x - torch.tanh(x))


def _sech2(x: torch.Tensor) -> torch.Tensor:
    e = torch.exp(-2 * x.abs())
    return 4 * e / (1 + e) ** 2


def _mish_parts(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """tanh(softplus(x)) and its derivative, from e = exp(-|x|)."""
    e = torch.exp(-x.abs())
    # tanh(log(1 + z)) = (z^2 + 2z) / (z^2 + 2z + 2), z = exp(x), times e^2 above and below for x > 0.
    above = torch.where(x > 0, 1 + 2 * e, e * (e + 2))
    below = above + torch.where(x > 0, 2 * e * e, torch.tensor(2.0, dtype=x.dtype))
    # 4 z (1 + z) / (z^2 + 2z + 2)^2
    slope = 4 * torch.where(x > 0, e * e * (e + 1), e * (1 + e)) / below**2
    return above / below, slope


def _mish_derivative(x: torch.Tensor) -> torch.Tensor:
    t, slope = _mish_parts(x)
    return t + x * slope


def _gelu_derivative(x: torch.Tensor) -> torch.Tensor:
    return torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


_K = 2 * math.sqrt(2 / math.pi)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(_K * x * (1 + 0.044715 * x * x))


def _gelu_tanh_derivative(x: torch.Tensor) -> torch.Tensor:
    u = _K * x * (1 + 0.044715 * x * x)
    return torch.sigmoid(u) + x * torch.sigmoid(u) * torch.sigmoid(-u) * _K * (1 + 3 * 0.044715 * x * x)


def _silu_derivative(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


def _pieces(*parts: tuple[float, float | Function]) -> Function:
    """Piecewise: (from where on, value), the first from minus infinity."""

    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        for start, value in parts:
            y = torch.where(x > start, value(x) if callable(value) else torch.full_like(x, value), y)
        return y

    return function


def _inside(low: float, high: float, value: float = 1.0) -> Function:
    """The value between the ends, without them, else 0."""
    return lambda x: torch.where((x > low) & (x < high), value, torch.zeros_like(x))


def _outside(limit: float, value: Function) -> Function:
    """The value beyond both limits, else 0."""
    return lambda x: torch.where(x.abs() > limit, value(x), torch.zeros_like(x))


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


_ALL = -math.inf
_SCALE, _ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
ACTIVATIONS = [
    Activation("ReLU", _pieces((0, _same)), _pieces((0, 1))),
    Activation("LeakyReLU", _pieces((_ALL, lambda x: 0.01 * x), (0, _same)), _pieces((_ALL, 0.01), (0, 1))),
    Activation("PReLU", _pieces((_ALL, lambda x: 0.25 * x), (0, _same)), _pieces((_ALL, 0.25), (0, 1))),
    Activation("ELU", _pieces((_ALL, torch.expm1), (0, _same)), _pieces((_ALL, torch.exp), (0, 1))),
    Activation(
        "SELU",
        _pieces((_ALL, lambda x: _SCALE * _ALPHA * torch.expm1(x)), (0, lambda x: _SCALE * x)),
        _pieces((_ALL, lambda x: _SCALE * _ALPHA * torch.exp(x)), (0, _SCALE)),
    ),
    Activation(
        "CELU",
        _pieces((_ALL, lambda x: 1.5 * torch.expm1(x / 1.5)), (0, _same)),
        _pieces((_ALL, lambda x: torch.exp(x / 1.5)), (0, 1)),
        (1.5,),
    ),
    Activation("Sigmoid", torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x)),
    Activation("LogSigmoid", lambda x: -_softplus(-x), lambda x: torch.sigmoid(-x)),
    Activation("Softplus", _pieces((_ALL, _softplus), (20, _same)), _pieces((_ALL, torch.sigmoid), (20, 1))),
    Activation("Tanh", torch.tanh, _sech2),
    Activation("Tanhshrink", _tanhshrink, lambda x: torch.tanh(x) ** 2),
    Activation("GELU", lambda x: x * torch.special.ndtr(x), _gelu_derivative),
    Activation("GELU", _gelu_tanh, _gelu_tanh_derivative, kwargs={"approximate": "tanh"}),
    Activation("SiLU", lambda x: x * torch.sigmoid(x), _silu_derivative),
    Activation("Mish", lambda x: x * _mish_parts(x)[0], _mish_derivative),
    Activation("Softsign", lambda x: x / (1 + x.abs()), lambda x: (1 + x.abs()) ** -2),
    Activation(
        "Hardswish",
        _pieces((-3, lambda x: x * (x + 3) / 6), (3, _same)),
        _pieces((-3, lambda x: x / 3 + 0.5), (3, 1)),
    ),
    Activation("Hardsigmoid", _pieces((-3, lambda x: (x + 3) / 6), (3, 1)), _inside(-3, 3, 1 / 6)),
    Activation("Hardtanh", _pieces((_ALL, -1), (-1, _same), (1, 1)), _inside(-1, 1)),
    Activation("ReLU6", _pieces((0, _same), (6, 6)), _inside(0, 6)),
    Activation("Threshold", _pieces((_ALL, 20), (0.1, _same)), _pieces((0.1, 1)), (0.1, 20.0)),
    Activation("Softshrink", _outside(0.5, lambda x: x - x.sign() / 2), _outside(0.5, torch.ones_like)),
    Activation("Hardshrink", _outside(0.5, _same), _outside(0.5, torch.ones_like)),
]


def points() -> torch.Tensor:
    """PER_EXPONENT values of each of the 255 finite exponents, ends included and the rest drawn, of both signs."""
    generator = torch.Generator().manual_seed(0)
    mantissas = torch.randint(2**23, (255, PER_EXPONENT), generator=generator, dtype=torch.int32)
    mantissas[:, 0], mantissas[:, 1] = 0, 2**23 - 1
    positive = (
        (mantissas + (torch.arange(255, dtype=torch.int32) << 23)[:, None]).flatten().view(torch.float32)
    )
    return torch.cat([positive, -positive])


def errors(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Units in the last place per element, in float64."""
    largest = torch.finfo(torch.float32).max
    _, exponent = torch.frexp(reference.clamp(-largest, largest))
    unit = torch.ldexp(torch.ones_like(reference), exponent.clamp(min=-125) - 24)
    error = (values.double() - reference).abs() / unit
    beyond = torch.isinf(reference.float()) & (values.double() == reference.float().double())
    error = torch.where(values.isnan() | values.isinf(), math.inf, error)
    return torch.where(beyond, 0.0, error)


def run(activation: Activation, side: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and gradient of one side."""
    module = getattr(library(side), activation.layer)(*activation.args, **activation.kwargs)
    x = x.clone().requires_grad_()
    with strict():
        y = module(x)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return y.detach(), dx


def worst(error: torch.Tensor, x: torch.Tensor) -> tuple[float, float]:
    """The largest error and where."""
    i = int(error.argmax())
    return float(error[i]), float(x[i])


def measure(x: torch.Tensor) -> Iterator[dict[str, Any]]:
    """A row per activation: {"name", (pass, side): (error, at)}."""
    for activation in ACTIVATIONS:
        references = {
            "forward": activation.forward(x.double()),
            "backward": activation.derivative(x.double()),
        }
        row: dict[str, Any] = {"name": activation.name}
        for side in ("fastnn", "torch"):
            for (name, reference), values in zip(references.items(), run(activation, side, x), strict=True):
                row[name, side] = worst(errors(values, reference), x)
        yield row


def cell(error: float, at: float) -> str:
    """`1.52 (-0.53)`; powers of ten for what has no right digit left."""
    if error == 0:
        return "0"
    return f"{error:.2f} ({at:.3g})" if error < 1000 else f"{error:.0e} ({at:.3g})"


def page(rows: list[dict[str, Any]]) -> str:
    """The text of docs/accuracy.md."""
    here = machine()
    sides = [(name, side) for name in ("forward", "backward") for side in ("fastnn", "torch")]
    lines = [
        "# Accuracy of the activations",
        "",
        "Generated by `python benchmarks/accuracy.py`. Largest error in units in the last place of float32 (in brackets",
        f"the input where it is), over {PER_EXPONENT} values of each exponent and sign, against float64; torch",
        f"{here['torch']}, fastnn's {here['cpu capability']} kernels. 0.5 is a correctly rounded result.",
        "",
        "Many units are few digits, not a large error: a result near 0 whose terms are not. `GELU` far below 0 has an error",
        "of 2^-23 of its input, as torch's; `SiLU` and `Mish` of -104 come from a subnormal exponential. Backward (for an",
        "incoming gradient of 1): derivatives that pass through 0 (`GELU`, `SiLU`, `Mish`, `Hardswish`), and those that are",
        "calculated from the output to save memory: `Sigmoid` and `Tanh` as torch's, `ELU`, `SELU` and `CELU` unlike torch's,",
        "with an absolute error of about 2^-24 where the derivative goes to 0. `inf`: overflow on the way, or NaN.",
        "",
        "| activation | forward, fastnn | forward, torch | backward, fastnn | backward, torch |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [f"| `{row['name']}` | " + " | ".join(cell(*row[key]) for key in sides) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = list(measure(points()))
    text = page(rows) + "\n".join(section()) + "\n"
    print(text)
    for row in rows:
        (ours, at), (theirs, _) = row["forward", "fastnn"], row["forward", "torch"]
        if ours > max(LIMIT, theirs):
            print(f"{row['name']}: {ours:.2f} units at {at:.9g}, torch's {theirs:.2f}")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
