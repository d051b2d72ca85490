"""Convolutions with the signatures of ``torch.nn.functional``."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor
from torch.jit._builtins import _register_builtin

from fastnn.functional._route import door, has_torch_function

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]

Ints = int | Sequence[int]


def _same(
    input: Tensor, weight: Tensor, stride: Ints, dilation: Ints
) -> tuple[Tensor, tuple[int, ...]] | None:
    """The input and the padding that make the output as large as the input; None where torch raises."""
    nd = weight.dim() - 2
    strides = (stride,) * nd if isinstance(stride, int) else tuple(stride)
    dilations = (dilation,) * nd if isinstance(dilation, int) else tuple(dilation)
    if len(dilations) == 1:
        dilations *= nd
    if any(s != 1 for s in strides) or len(dilations) != nd or input.dim() not in (nd + 1, nd + 2):
        return None
    total = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
    odd = [t % 2 for t in total]
    if any(odd):  # the right side gets one more
        input = F.pad(input, [side for o in reversed(odd) for side in (0, o)])
    return input, tuple(t // 2 for t in total)


def _conv(
    name: str,
    torch_function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints | str,
    dilation: Ints,
    groups: int,
) -> Tensor:
    if has_torch_function((input, weight, bias)):
        return torch_function(input, weight, bias, stride, padding, dilation, groups)
    if padding == "valid":
        padding = 0
    elif isinstance(padding, str):
        same = _same(input, weight, stride, dilation) if padding == "same" else None
        if same is None:
            return torch_function(input, weight, bias, stride, padding, dilation, groups)
        input, padding = same
    return getattr(door(), name)(input, weight, bias, stride, padding, dilation, groups)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """``(N, C, L)`` or ``(C, L)``; see :func:`torch.nn.functional.conv1d`."""
    return _conv("conv1d", F.conv1d, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """``(N, C, H, W)`` or ``(C, H, W)``; see :func:`torch.nn.functional.conv2d`."""
    return _conv("conv2d", F.conv2d, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """``(N, C, D, H, W)`` or ``(C, D, H, W)``; see :func:`torch.nn.functional.conv3d`."""
    return _conv("conv3d", F.conv3d, input, weight, bias, stride, padding, dilation, groups)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """``(N, C, L)`` or ``(C, L)``; see :func:`torch.nn.functional.conv_transpose1d`."""
    if has_torch_function((input, weight, bias)):
        return F.conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return door().conv_transpose1d(input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """``(N, C, H, W)`` or ``(C, H, W)``; see :func:`torch.nn.functional.conv_transpose2d`."""
    if has_torch_function((input, weight, bias)):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return door().conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """``(N, C, D, H, W)`` or ``(C, D, H, W)``; see :func:`torch.nn.functional.conv_transpose3d`."""
    if has_torch_function((input, weight, bias)):
        return F.conv_transpose3d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return door().conv_transpose3d(input, weight, bias, stride, padding, output_padding, groups, dilation)


# TorchScript sees torch's own op: it compiles no function whose arguments are an int or a tuple or a string.
for _function in (conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d):
    _register_builtin(_function, f"aten::{_function.__name__}")
