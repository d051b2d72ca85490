"""Element-wise activations, PReLU, RReLU and GLU with the signatures of ``torch.nn.functional``.

Scripting, fx and subclasses see torch's own function (the last line of each); the rest goes to the op. What runs
before it counts: a Python call costs as much as ReLU takes for 1,000 numbers. So only those ask ``is_scripting()`` of
which torch's own function is a builtin, which has no source that ``scripts_as`` could name.
"""

import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import (
    compiled,
    compiling,
    door,
    eager,
    has_torch_function,
    has_torch_function_unary,
    is_scripting,
    overwrite,
    scripts_as,
)

__all__ = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "softplus",
    "softshrink",
    "softsign",
    "tanh",
    "tanhshrink",
    "threshold",
]


@scripts_as(F.relu)
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``max(0, x)``, element by element; see :func:`torch.nn.functional.relu`. Any shape."""
    if not has_torch_function_unary(input):
        return overwrite("relu", input) if inplace else (compiled if compiling() else eager).relu(input)
    return F.relu(input, inplace=inplace)


@scripts_as(F.leaky_relu)
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``x`` where positive, else ``negative_slope * x``; see :func:`torch.nn.functional.leaky_relu`. Any shape."""
    if not has_torch_function_unary(input):
        return (
            overwrite("leaky_relu", input, negative_slope)
            if inplace
            else (compiled if compiling() else eager).leaky_relu(input, negative_slope)
        )
    return F.leaky_relu(input, negative_slope, inplace=inplace)


@scripts_as(F.elu)
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``x`` where positive, else ``alpha * (exp(x) - 1)``; see :func:`torch.nn.functional.elu`. Any shape."""
    if not has_torch_function_unary(input):
        return (
            overwrite("elu", input, alpha)
            if inplace
            else (compiled if compiling() else eager).elu(input, alpha)
        )
    return F.elu(input, alpha, inplace=inplace)


@scripts_as(F.selu)
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """``scale * elu(x, alpha)`` with the two constants of self-normalising networks. Any shape.

    See :func:`torch.nn.functional.selu`.
    """
    if not has_torch_function_unary(input):
        return overwrite("selu", input) if inplace else (compiled if compiling() else eager).selu(input)
    return F.selu(input, inplace=inplace)


@scripts_as(F.celu)
def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``x`` where positive, else ``alpha * (exp(x / alpha) - 1)``; see :func:`torch.nn.functional.celu`. Any shape."""
    if not has_torch_function_unary(input):
        return (
            overwrite("celu", input, alpha)
            if inplace
            else (compiled if compiling() else eager).celu(input, alpha)
        )
    return F.celu(input, alpha, inplace=inplace)


@scripts_as(F.sigmoid)
def sigmoid(input: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``; see :func:`torch.nn.functional.sigmoid`. Any shape."""
    if not has_torch_function_unary(input):
        return (compiled if compiling() else eager).sigmoid(input)
    return F.sigmoid(input)


@scripts_as(F.tanh)
def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent; see :func:`torch.nn.functional.tanh`. Any shape."""
    if not has_torch_function_unary(input):
        return (compiled if compiling() else eager).tanh(input)
    return F.tanh(input)


@scripts_as(F.relu6)
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """``min(6, max(0, x))``; see :func:`torch.nn.functional.relu6`. Any shape."""
    if not has_torch_function_unary(input):
        return overwrite("relu6", input) if inplace else (compiled if compiling() else eager).relu6(input)
    return F.relu6(input, inplace=inplace)


@scripts_as(F.hardtanh)
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """``x`` limited to ``[min_val, max_val]``; see :func:`torch.nn.functional.hardtanh`. Any shape."""
    if not has_torch_function_unary(input) and min_val <= max_val:
        return (
            overwrite("hardtanh", input, min_val, max_val)
            if inplace
            else (compiled if compiling() else eager).hardtanh(input, min_val, max_val)
        )
    return F.hardtanh(input, min_val, max_val, inplace=inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``x`` times the normal distribution function; see :func:`torch.nn.functional.gelu`. Any shape."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            if approximate == "none":
                return (compiled if compiling() else eager).gelu(input)
            if approximate == "tanh":
                return (compiled if compiling() else eager).gelu_tanh(input)
    return F.gelu(input, approximate=approximate)


@scripts_as(F.silu)
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """``x * sigmoid(x)``; see :func:`torch.nn.functional.silu`. Any shape."""
    if not has_torch_function_unary(input):
        return overwrite("silu", input) if inplace else (compiled if compiling() else eager).silu(input)
    return F.silu(input, inplace=inplace)


@scripts_as(F.mish)
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """``x * tanh(softplus(x))``; see :func:`torch.nn.functional.mish`. Any shape."""
    if not has_torch_function_unary(input):
        return overwrite("mish", input) if inplace else (compiled if compiling() else eager).mish(input)
    return F.mish(input, inplace=inplace)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``log(1 + exp(beta * x)) / beta``, or ``x`` where ``beta * x`` exceeds ``threshold``. Any shape.

    See :func:`torch.nn.functional.softplus`.
    """
    if not is_scripting():
        if not has_torch_function_unary(input):
            return (compiled if compiling() else eager).softplus(input, beta, threshold)
    return F.softplus(input, beta, threshold)


@scripts_as(F.softsign)
def softsign(input: Tensor) -> Tensor:
    """``x / (1 + abs(x))``; see :func:`torch.nn.functional.softsign`. Any shape."""
    if not has_torch_function_unary(input):
        return (compiled if compiling() else eager).softsign(input)
    return F.softsign(input)


@scripts_as(F.hardswish)
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """``x * relu6(x + 3) / 6``; see :func:`torch.nn.functional.hardswish`. Any shape."""
    if not has_torch_function_unary(input):
        return (
            overwrite("hardswish", input)
            if inplace
            else (compiled if compiling() else eager).hardswish(input)
        )
    return F.hardswish(input, inplace=inplace)


@scripts_as(F.hardsigmoid)
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """``relu6(x + 3) / 6``; see :func:`torch.nn.functional.hardsigmoid`. Any shape."""
    if not has_torch_function_unary(input):
        return (
            overwrite("hardsigmoid", input)
            if inplace
            else (compiled if compiling() else eager).hardsigmoid(input)
        )
    return F.hardsigmoid(input, inplace=inplace)


def logsigmoid(input: Tensor) -> Tensor:
    """``log(sigmoid(x))``; see :func:`torch.nn.functional.logsigmoid`. Any shape."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            return (compiled if compiling() else eager).logsigmoid(input)
    return F.logsigmoid(input)


@scripts_as(F.threshold)
def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """``x`` where it exceeds ``threshold``, else ``value``; see :func:`torch.nn.functional.threshold`. Any shape."""
    if not has_torch_function_unary(input):
        return (
            overwrite("threshold", input, threshold, value)
            if inplace
            else (compiled if compiling() else eager).threshold(input, threshold, value)
        )
    return F.threshold(input, threshold, value, inplace=inplace)


@scripts_as(F.tanhshrink)
def tanhshrink(input: Tensor) -> Tensor:
    """``x - tanh(x)``; see :func:`torch.nn.functional.tanhshrink`. Any shape."""
    if not has_torch_function_unary(input):
        return (compiled if compiling() else eager).tanhshrink(input)
    return F.tanhshrink(input)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """``x`` moved towards 0 by ``lambd``; see :func:`torch.nn.functional.softshrink`. Any shape."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            return (compiled if compiling() else eager).softshrink(input, lambd)
    return F.softshrink(input, lambd)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """``x`` where ``abs(x)`` exceeds ``lambd``, else 0; see :func:`torch.nn.functional.hardshrink`. Any shape."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            return (compiled if compiling() else eager).hardshrink(input, lambd)
    return F.hardshrink(input, lambd)


@scripts_as(F.rrelu)
def rrelu(
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """A leaky relu, its slope random while training; see :func:`torch.nn.functional.rrelu`. Any shape.

    The slopes follow from torch's CPU generator, so ``torch.manual_seed`` rules them, but for the same seed they are
    not those of torch's own op. As torch's, the output is contiguous.
    """
    if lower <= upper and not has_torch_function_unary(input):
        if training:
            ops = door()
            return ops.rrelu_(input, lower, upper) if inplace else ops.rrelu(input, lower, upper)
        slope = (lower + upper) / 2
        return (
            overwrite("leaky_relu", input, slope)
            if inplace
            else (compiled if compiling() else eager).leaky_relu(input.contiguous(), slope)
        )
    return F.rrelu(input, lower, upper, training, inplace)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """``x`` where positive, else ``weight * x``; see :func:`torch.nn.functional.prelu`.

    ``input`` is ``(N, C, ...)`` and ``weight`` ``(C,)``; a single weight goes with any shape.
    """
    if not is_scripting():
        if not has_torch_function((input, weight)):
            return (compiled if compiling() else eager).prelu(input, weight)
    return F.prelu(input, weight)


@scripts_as(F.glu)
def glu(input: Tensor, dim: int = -1) -> Tensor:
    """The first half of ``dim`` times the sigmoid of the second; see :func:`torch.nn.functional.glu`."""
    if not has_torch_function_unary(input):
        return (compiled if compiling() else eager).glu(input, dim)
    return F.glu(input, dim)
