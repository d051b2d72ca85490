"""Runs of layers as one operation: ``Conv or Linear -> BatchNorm -> sum with another branch -> activation -> pooling ->
Dropout``, each optional.

From BatchNorm on, forward and backward keep the numbers between the layers in cache, and one tensor where the layers
keep one each; the results are those of the layers one by one, bit for bit. What Conv or Linear gives is overwritten
where nobody needs it. In eval mode without gradients BatchNorm goes into their weights, which rounds differently.
:func:`fastnn.fuse` finds the runs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastnn import _C, functional
from fastnn.functional._route import compiling, has_torch_function
from fastnn.modules import activation, batchnorm, conv, dropout, linear, pooling
from fastnn.modules.batchnorm import _BatchNorm

__all__ = ["Chain", "Sum", "chains", "is_normalization", "one_by_one"]

Stage = Callable[[Any, Any], None]  # (the call, the layer)


def _normalize(call: Any, layer: Any) -> None:
    running_mean, running_var, training, momentum = _BatchNorm._statistics(layer)
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


def _nothing(call: Any, layer: Any) -> None:
    """Conv and Linear run before the call, and the other branch of a sum comes with it."""


class Sum(nn.Module):
    """``input + residual`` as a layer of a chain; ``inplace``: the input takes the sum."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:
        return input.add_(residual) if self.inplace else input + residual


# torch's class -> its place in a chain and what tells a call about it. One layer of each place, in this order.
_MAKER, _NORM, _SUM, _ACTIVATION, _POOL, _DROPOUT = range(6)
_STAGES: dict[type[nn.Module], tuple[int, Stage]] = {
    nn.Conv1d: (_MAKER, _nothing),
    nn.Conv2d: (_MAKER, _nothing),
    nn.Conv3d: (_MAKER, _nothing),
    nn.Linear: (_MAKER, _nothing),
    nn.BatchNorm1d: (_NORM, _normalize),
    nn.BatchNorm2d: (_NORM, _normalize),
    nn.BatchNorm3d: (_NORM, _normalize),
    Sum: (_SUM, _nothing),
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
for _module in (activation, batchnorm, conv, dropout, linear, pooling):
    for _name in _module.__all__:
        if (_stage := _STAGES.get(getattr(nn, _name))) is not None:
            _STAGES[getattr(_module, _name)] = _stage


def is_plain(layer: nn.Module) -> bool:
    """Nobody watches or replaces the layer's forward: no hooks, no ``forward`` of the instance's own, one output."""
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
        or vars(layer).get("return_indices")
    )


class Chain:
    """Layers that follow one another, called as one: ``y = Chain(layers)(x)``, or ``(x, residual)`` with a `Sum`."""

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers = tuple(layers)
        stages: dict[int, Any] = {_STAGES[type(layer)][0]: layer for layer in layers}
        self._maker = stages.pop(_MAKER, None)
        self._norm = stages.pop(_NORM, None)
        self._behind = [(layer, _STAGES[type(layer)][1]) for layer in stages.values()]
        self._folded = Folded(self._maker, self._norm) if self._maker and self._norm else None

    def __call__(self, input: Tensor, *residual: Tensor) -> Tensor:
        as_one = isinstance(input, Tensor) and not (
            compiling()
            or has_torch_function((input, *residual))
            or torch.jit.is_tracing()
            or _has_any_global_hook()
            or not all(map(is_plain, self.layers))
        )
        return self._run(input, residual) if as_one else one_by_one(self.layers, input, *residual)

    def _run(self, input: Tensor, residual: tuple[Tensor, ...]) -> Tensor:
        norm = self._norm
        made = input
        if self._folded is not None and self._folded.applies(input):
            norm = None
            made = self._folded(input)
            if not self._behind:
                return made
        elif self._maker is not None:
            made = self._maker(input)
        call = _C.Chain()
        if norm is not None:
            norm._check_input_dim(made)
            _normalize(call, norm)
        for layer, tell in self._behind:
            tell(call, layer)
        for other in residual:
            call.add(other)
        output: Tensor | None = call.run(made, self._maker is not None)
        if output is None:  # a mode, or arguments that there is no kernel for
            rest = [layer for layer, _ in self._behind]
            return one_by_one(rest if norm is None else [norm, *rest], made, *residual)
        if norm is not None:
            _BatchNorm._count_batch(norm)
        return output

    def __repr__(self) -> str:
        return " + ".join(type(layer).__name__ for layer in self.layers)


def one_by_one(layers: Iterable[nn.Module], input: Tensor, *residual: Tensor) -> Tensor:
    """What a chain of these layers stands for."""
    for layer in layers:
        input = layer(input, *residual) if isinstance(layer, Sum) else layer(input)
    return input


class Folded:
    """BatchNorm in eval mode as part of the layer before it.

    ``(w x + b - mean) * scale + shift  =  (w scale) x + (b - mean) * scale + shift`` with
    ``scale = weight / sqrt(var + eps)``, computed in float64 and kept until one of the tensors changes.
    """

    def __init__(self, maker: Any, norm: Any):
        self._maker, self._norm = maker, norm
        self._key: object = None
        self._weight = self._bias = torch.empty(0)

    def _tensors(self) -> list[Tensor | None]:
        maker, norm = self._maker, self._norm
        return [maker.weight, maker.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var]

    def applies(self, input: Tensor) -> bool:
        """Eval mode with running statistics, no gradient wanted, nothing that computes otherwise than told."""
        norm = self._norm
        if norm.training or norm.running_mean is None or norm.running_var is None:
            return False
        tensors = [t for t in self._tensors() if t is not None]
        if torch.is_grad_enabled() and (input.requires_grad or any(t.requires_grad for t in tensors)):
            return False
        plain = all(type(t) in (Tensor, nn.Parameter) and not t.is_inference() for t in tensors)
        one_type = all(t.dtype == input.dtype for t in tensors)
        return plain and one_type and not torch.is_autocast_enabled(input.device.type)

    def __call__(self, input: Tensor) -> Tensor:
        key = (self._norm.eps, [t if t is None else (t.data_ptr(), t._version) for t in self._tensors()])
        if key != self._key:
            self._fold()
            self._key = key
        if isinstance(self._maker, nn.Linear):
            return functional.linear(input, self._weight, self._bias)
        output: Tensor = self._maker._conv_forward(input, self._weight, self._bias)
        return output

    @torch.no_grad()
    def _fold(self) -> None:
        weight, bias, scale, shift, mean, var = self._tensors()
        assert weight is not None and mean is not None and var is not None
        factor = (var.double() + self._norm.eps).rsqrt()
        factor = factor if scale is None else factor * scale.double()
        offset = (0.0 if bias is None else bias.double()) - mean.double()
        offset = offset * factor if shift is None else offset * factor + shift.double()
        columns = factor.reshape(-1, *[1] * (weight.dim() - 1))
        self._weight = (weight.double() * columns).to(weight.dtype)
        self._bias = offset.to(weight.dtype)


def is_normalization(layer: nn.Module) -> bool:
    """A layer of a chain behind which a sum gains most."""
    return _place(layer) == _NORM


def _place(layer: nn.Module) -> int | None:
    known = type(layer) in _STAGES and not vars(layer).get("return_indices")
    return _STAGES[type(layer)][0] if known else None


def chains(layers: Sequence[nn.Module]) -> list[range]:
    """Where the runs of two and more layers lie that one :class:`Chain` can take."""
    found = []
    at = 0
    while at < len(layers):
        places = [_place(layer) for layer in layers[at:]]
        end, last = at, -1
        while end < len(layers) and (place := places[end - at]) is not None and place > last:
            if place > _ACTIVATION and _SUM in places[: end - at]:
                break
            last = place
            end += 1
        start = at
        # Conv or Linear gains by what is done to its output at once; on its own, or before a pooling, nothing.
        if end - at > 1 and places[0] == _MAKER and places[1] not in (_NORM, _ACTIVATION):
            start += 1
        # The first layer of a model may work in place: that has to be seen in what it was given.
        while end - start > 1 and getattr(layers[start], "inplace", False):
            start += 1
        if end - start > 1:
            found.append(range(start, end))
        at = max(end, at + 1)
    return found
