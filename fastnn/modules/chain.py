"""Runs of layers as one operation: ``BatchNorm -> activation -> pooling -> Dropout``, each of them optional.

Forward and backward keep the numbers between the layers in cache, and one tensor where the layers keep one each. The
results are those of the layers one by one. :func:`fastnn.fuse` finds the runs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastnn import _C
from fastnn.functional._route import compiling, has_torch_function_unary
from fastnn.modules import activation, batchnorm, dropout, pooling
from fastnn.modules.batchnorm import count_batch, statistics

__all__ = ["Chain", "chains", "is_plain"]

Stage = Callable[[Any, Any], None]  # (the call, the layer)


def _normalize(call: Any, layer: Any) -> None:
    running_mean, running_var, training, momentum = statistics(layer)
    call.normalize(running_mean, running_var, layer.weight, layer.bias, training, momentum, layer.eps)


def _activate(name: str, *parameters: str) -> Stage:
    """Tells a call the activation's name and its parameters, read from these attributes of the layer."""
    first, second = (*parameters, None, None)[:2]

    def tell(call: Any, layer: Any) -> None:
        call.activate(
            name, getattr(layer, first) if first else 0.0, getattr(layer, second) if second else 0.0
        )

    return tell


def _gelu(call: Any, layer: Any) -> None:
    call.activate("gelu" if layer.approximate == "none" else "gelu_tanh", 0.0, 0.0)


def _max_pool(rank: int) -> Stage:
    def tell(call: Any, layer: Any) -> None:
        steps = layer.kernel_size if layer.stride is None else layer.stride
        call.max_pool(rank, layer.kernel_size, steps, layer.padding, layer.dilation, layer.ceil_mode)

    return tell


def _avg_pool(rank: int) -> Stage:
    def tell(call: Any, layer: Any) -> None:
        steps = layer.kernel_size if layer.stride is None else layer.stride
        divisor = getattr(layer, "divisor_override", None) or 0
        call.avg_pool(
            rank, layer.kernel_size, steps, layer.padding, layer.ceil_mode, layer.count_include_pad, divisor
        )

    return tell


def _adaptive_pool(rank: int, is_max: bool) -> Stage:
    def tell(call: Any, layer: Any) -> None:
        call.adaptive_pool(rank, layer.output_size, is_max)

    return tell


def _drop(call: Any, layer: Any) -> None:
    if layer.training:
        call.drop(layer.p)


# torch's class -> its place in a chain and what tells a call about it. One layer of each place, in this order.
_NORM, _ACTIVATION, _POOL, _DROPOUT = range(4)
_STAGES: dict[type[nn.Module], tuple[int, Stage]] = {
    nn.BatchNorm1d: (_NORM, _normalize),
    nn.BatchNorm2d: (_NORM, _normalize),
    nn.BatchNorm3d: (_NORM, _normalize),
    nn.ReLU: (_ACTIVATION, _activate("relu")),
    nn.LeakyReLU: (_ACTIVATION, _activate("leaky_relu", "negative_slope")),
    nn.ELU: (_ACTIVATION, _activate("elu", "alpha")),
    nn.SELU: (_ACTIVATION, _activate("selu")),
    nn.CELU: (_ACTIVATION, _activate("celu", "alpha")),
    nn.Sigmoid: (_ACTIVATION, _activate("sigmoid")),
    nn.Tanh: (_ACTIVATION, _activate("tanh")),
    nn.ReLU6: (_ACTIVATION, _activate("hardtanh", "min_val", "max_val")),
    nn.Hardtanh: (_ACTIVATION, _activate("hardtanh", "min_val", "max_val")),
    nn.GELU: (_ACTIVATION, _gelu),
    nn.SiLU: (_ACTIVATION, _activate("silu")),
    nn.Mish: (_ACTIVATION, _activate("mish")),
    nn.Softplus: (_ACTIVATION, _activate("softplus", "beta", "threshold")),
    nn.Softsign: (_ACTIVATION, _activate("softsign")),
    nn.Hardswish: (_ACTIVATION, _activate("hardswish")),
    nn.Hardsigmoid: (_ACTIVATION, _activate("hardsigmoid")),
    nn.Threshold: (_ACTIVATION, _activate("threshold", "threshold", "value")),
    nn.Tanhshrink: (_ACTIVATION, _activate("tanhshrink")),
    nn.Softshrink: (_ACTIVATION, _activate("softshrink", "lambd")),
    nn.Hardshrink: (_ACTIVATION, _activate("hardshrink", "lambd")),
    nn.MaxPool1d: (_POOL, _max_pool(1)),
    nn.MaxPool2d: (_POOL, _max_pool(2)),
    nn.MaxPool3d: (_POOL, _max_pool(3)),
    nn.AvgPool1d: (_POOL, _avg_pool(1)),
    nn.AvgPool2d: (_POOL, _avg_pool(2)),
    nn.AvgPool3d: (_POOL, _avg_pool(3)),
    nn.AdaptiveMaxPool1d: (_POOL, _adaptive_pool(1, True)),
    nn.AdaptiveMaxPool2d: (_POOL, _adaptive_pool(2, True)),
    nn.AdaptiveMaxPool3d: (_POOL, _adaptive_pool(3, True)),
    nn.AdaptiveAvgPool1d: (_POOL, _adaptive_pool(1, False)),
    nn.AdaptiveAvgPool2d: (_POOL, _adaptive_pool(2, False)),
    nn.AdaptiveAvgPool3d: (_POOL, _adaptive_pool(3, False)),
    nn.Dropout: (_DROPOUT, _drop),
}
for _module in (activation, batchnorm, dropout, pooling):
    for _name in _module.__all__:
        if (_stage := _STAGES.get(getattr(nn, _name))) is not None:
            _STAGES[getattr(_module, _name)] = _stage


def is_plain(layer: nn.Module) -> bool:
    """Nobody watches or replaces the layer's forward: no hooks, no ``forward`` of the instance's own."""
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
    )


class Chain:
    """Layers that follow one another, called as one: ``y = Chain(layers)(x)``."""

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers = tuple(layers)
        self._stages = [(layer, _STAGES[type(layer)][1]) for layer in layers]
        first = self.layers[0]
        self._norm: Any = first if _STAGES[type(first)][0] == _NORM else None

    def __call__(self, input: Tensor) -> Tensor:
        output = None if compiling() or has_torch_function_unary(input) else self._fused(input)
        if output is None:
            output = input
            for layer in self.layers:
                output = layer(output)
        return output

    def _fused(self, input: Tensor) -> Tensor | None:
        """The result, or None where the layers must run one by one: hooks, modes, arguments without a kernel."""
        if _has_any_global_hook() or not all(map(is_plain, self.layers)) or torch.jit.is_tracing():
            return None
        if self._norm is not None:
            self._norm._check_input_dim(input)
        call = _C.Chain()
        for layer, tell in self._stages:
            tell(call, layer)
        output: Tensor | None = call.run(input)
        if output is not None and self._norm is not None:
            count_batch(self._norm)
        return output

    def __repr__(self) -> str:
        return " + ".join(type(layer).__name__ for layer in self.layers)


def _eligible(layer: nn.Module) -> bool:
    return type(layer) in _STAGES and is_plain(layer) and not getattr(layer, "return_indices", False)


def chains(layers: Sequence[nn.Module]) -> list[range]:
    """Where the runs of two and more layers lie that one :class:`Chain` can take."""
    found = []
    at = 0
    while at < len(layers):
        end, place = at, -1
        while end < len(layers) and _eligible(layers[end]) and _STAGES[type(layers[end])][0] > place:
            place = _STAGES[type(layers[end])][0]
            end += 1
        # A layer that works in place has to be seen to change what it was given.
        while end - at > 1 and getattr(layers[at], "inplace", False) and not _makes_its_output(layers, at):
            at += 1
        if end - at > 1:
            found.append(range(at, end))
        at = max(end, at + 1)
    return found


def _makes_its_output(layers: Sequence[nn.Module], at: int) -> bool:
    """The layer before ``at`` gives a tensor that nobody else has."""
    makers = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
    return at > 0 and isinstance(layers[at - 1], makers) and is_plain(layers[at - 1])
