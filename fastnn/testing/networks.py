"""Whole small networks for the benchmarks, each a function of the module that has the layer classes."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any

import torch


def mlp(nn: ModuleType) -> torch.nn.Module:
    """Four linear layers, 784 inputs, 10 outputs."""
    sizes = (784, 1024, 1024, 512)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


def lenet(nn: ModuleType) -> torch.nn.Module:
    """The demo's convolutional network without its dropout; input N x 1 x 28 x 28."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 256), nn.ELU(), nn.Linear(256, 10),
    )  # fmt: skip


def bn_relu_pool(nn: ModuleType) -> torch.nn.Module:
    """The memory-bound chain; input N x 48 x H x W."""
    return nn.Sequential(nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2))


def bn_relu(nn: ModuleType) -> torch.nn.Module:
    """Input N x 48 x H x W."""
    return nn.Sequential(nn.BatchNorm2d(48), nn.ReLU())


def bn_gelu_avg(nn: ModuleType) -> torch.nn.Module:
    """Input N x 48 x H x W."""
    return nn.Sequential(nn.BatchNorm2d(48), nn.GELU(), nn.AvgPool2d(2))


def bn_relu_pool_dropout(nn: ModuleType) -> torch.nn.Module:
    """The same with dropout, as most of a network's memory is spent; input N x 48 x H x W."""
    return nn.Sequential(nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3))


def _conv_bn(
    nn: ModuleType, inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1
) -> list[torch.nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def vgg(nn: ModuleType) -> torch.nn.Module:
    """3x3 convolutions with batch norm; input N x 3 x 32 x 32."""
    layers: list[torch.nn.Module] = []
    channels = 3
    for width, repeats in ((64, 2), (128, 2), (256, 2)):
        for _ in range(repeats):
            layers += [*_conv_bn(nn, channels, width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Residual(torch.nn.Module):
    """relu(body(x) + shortcut(x)), the basic block of ResNet-18."""

    def __init__(self, nn: ModuleType, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = _conv_bn(nn, inputs, outputs, stride=stride)
        self.body = nn.Sequential(*first, nn.ReLU(), *_conv_bn(nn, outputs, outputs))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_bn(nn, inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


def resnet18(nn: ModuleType) -> torch.nn.Module:
    """ResNet-18 with 1000 classes; input N x 3 x 224 x 224."""
    layers = [*_conv_bn(nn, 3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(Residual(nn, channels, width, stride))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def mobilenet(nn: ModuleType) -> torch.nn.Module:
    """MobileNet-v1: depthwise 3x3 and 1x1 convolutions; input N x 3 x 224 x 224."""
    layers = [*_conv_bn(nn, 3, 32, 3, 2), nn.ReLU()]
    channels = 32
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for width, stride in plan:
        layers += [*_conv_bn(nn, channels, channels, 3, stride, channels), nn.ReLU()]
        layers += [*_conv_bn(nn, channels, width, 1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class _SelfAttention(torch.nn.Module):
    """`MultiheadAttention` of one input, whose output is a tensor."""

    def __init__(
        self, nn: ModuleType, *args: Any, weights: bool = False, causal: bool = False, **kw: Any
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(*args, **kw)
        self.weights, self.causal = weights, causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1 if x.dim() == 3 and self.attention.batch_first else 0]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1) if self.causal else None
        y: torch.Tensor = self.attention(
            x, x, x, need_weights=self.weights, attn_mask=mask, is_causal=self.causal
        )[0]
        return y.contiguous()  # torch's lies transposed with batch_first


def self_attention(nn: ModuleType, *args: Any, **kw: Any) -> torch.nn.Module:
    """Multi-head self-attention, arguments of `MultiheadAttention`; weights: asked for; causal: with such a mask."""
    return _SelfAttention(nn, *args, **kw)


class ScaledDotProduct(torch.nn.Module):
    """Attention of the three parts of x, [N, L, 3 * heads * E], as a projection gives them: views with heads."""

    def __init__(self, nn: ModuleType, heads: int, **arguments: Any) -> None:
        super().__init__()
        self.function, self.heads, self.arguments = (
            nn.functional.scaled_dot_product_attention,
            heads,
            arguments,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y: torch.Tensor = self.function(q, k, v, **self.arguments)
        return y.contiguous()


def scaled_dot_product(nn: ModuleType, heads: int, **arguments: Any) -> torch.nn.Module:
    """`scaled_dot_product_attention` within a [N, L, 3 * heads * E] input; arguments of that function."""
    return ScaledDotProduct(nn, heads, **arguments)


def packed_sizes(sequences: int, steps: int) -> list[int]:
    """The batch sizes of so many packed sequences, whose lengths fall evenly from `steps` to a quarter of it."""
    last = max(1, steps // 4)
    lengths = [steps - (steps - last) * i // max(1, sequences - 1) for i in range(sequences)]
    return [sum(length > t for length in lengths) for t in range(steps)]


class Recurrent(torch.nn.Module):
    """`RNN`, `LSTM`, `GRU` or a cell, whose output is a tensor, or with `states` all its tensors side by side.

    packed: (sequences, steps); the input is then the data of packed sequences, see `packed_sizes`.
    """

    def __init__(
        self,
        nn: ModuleType,
        layer: str,
        *args: Any,
        packed: tuple[int, int] | None = None,
        states: bool = False,
        **kw: Any,
    ) -> None:
        super().__init__()
        self.layer = getattr(nn, layer)(*args, **kw)
        self.batch_sizes = None if packed is None else torch.tensor(packed_sizes(*packed))
        self.states = states

    def forward(self, x: torch.Tensor) -> Any:
        sizes = self.batch_sizes
        results = self.layer(x if sizes is None else torch.nn.utils.rnn.PackedSequence(x, sizes))
        if not isinstance(results, tuple):
            return results
        y, last = results
        if isinstance(y, torch.nn.utils.rnn.PackedSequence):
            y = y.data
        if not self.states:
            return y
        return (y, *last) if isinstance(last, tuple) else (y, last)


def recurrent(nn: ModuleType, layer: str, *args: Any, **kw: Any) -> torch.nn.Module:
    """A recurrent layer by its name, with its arguments; see `Recurrent`."""
    return Recurrent(nn, layer, *args, **kw)
