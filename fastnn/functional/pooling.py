"""Max, average and power-average pooling with the signatures of ``torch.nn.functional``.

Inputs are ``(N, C, ...)`` or ``(C, ...)`` with one to three dimensions of space, contiguous or channels last.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch._jit_internal import (
    BroadcastingList1,
    BroadcastingList2,
    BroadcastingList3,
    Optional,
    boolean_dispatched,
)

from fastnn.functional._route import door, has_torch_function_unary, is_scripting

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
]

# TorchScript compiles the last line of each function here: torch's own op.


def _either(with_indices: Callable[..., Any], plain: Callable[..., Any], position: int) -> Callable[..., Any]:
    """One function of the two; ``return_indices``, its argument number ``position``, chooses.

    TorchScript wants that argument to be a constant and looks the two up in a table of torch's.
    """

    def either(*args: Any, **kwargs: Any) -> Any:
        chosen = kwargs.get("return_indices", len(args) > position and args[position])
        return with_indices(*args, **kwargs) if chosen else plain(*args, **kwargs)

    either.__name__ = either.__qualname__ = plain.__name__.removeprefix("_")
    either.__doc__ = plain.__doc__ = with_indices.__doc__
    entry: Any = {
        "if_true": with_indices,
        "if_false": plain,
        "index": position,
        "default": False,
        "arg_name": "return_indices",
    }
    boolean_dispatched[either] = entry
    return either


def _sizes(output_size: Any, input: Tensor, rank: int) -> Any:
    """``output_size`` as ``rank`` numbers, with the input's own size in place of each ``None``."""
    if not isinstance(output_size, Sequence):
        return [output_size] * rank
    if None in output_size and len(output_size) == rank < input.dim():
        have = input.shape[input.dim() - rank :]
        return [old if new is None else new for new, old in zip(output_size, have, strict=True)]
    return output_size


def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: BroadcastingList1[int],
    stride: Optional[BroadcastingList1[int]] = None,
    padding: BroadcastingList1[int] = 0,
    dilation: BroadcastingList1[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """Largest value of each window, and with ``return_indices`` where it was; see :func:`torch.nn.functional.max_pool1d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            steps = () if stride is None else stride
            return door().max_pool1d_with_indices(input, kernel_size, steps, padding, dilation, ceil_mode)
    return F.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def _max_pool1d(
    input: Tensor,
    kernel_size: BroadcastingList1[int],
    stride: Optional[BroadcastingList1[int]] = None,
    padding: BroadcastingList1[int] = 0,
    dilation: BroadcastingList1[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if not is_scripting():
        if not has_torch_function_unary(input):
            steps = () if stride is None else stride
            return door().max_pool1d(input, kernel_size, steps, padding, dilation, ceil_mode)
    return F.max_pool1d(input, kernel_size, stride, padding, dilation, ceil_mode)


max_pool1d = _either(max_pool1d_with_indices, _max_pool1d, 6)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: BroadcastingList2[int],
    stride: Optional[BroadcastingList2[int]] = None,
    padding: BroadcastingList2[int] = 0,
    dilation: BroadcastingList2[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """Largest value of each window, and with ``return_indices`` where it was; see :func:`torch.nn.functional.max_pool2d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            steps = () if stride is None else stride
            return door().max_pool2d_with_indices(input, kernel_size, steps, padding, dilation, ceil_mode)
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def _max_pool2d(
    input: Tensor,
    kernel_size: BroadcastingList2[int],
    stride: Optional[BroadcastingList2[int]] = None,
    padding: BroadcastingList2[int] = 0,
    dilation: BroadcastingList2[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if not is_scripting():
        if not has_torch_function_unary(input):
            steps = () if stride is None else stride
            return door().max_pool2d(input, kernel_size, steps, padding, dilation, ceil_mode)
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)


max_pool2d = _either(max_pool2d_with_indices, _max_pool2d, 6)


def max_pool3d_with_indices(
    input: Tensor,
    kernel_size: BroadcastingList3[int],
    stride: Optional[BroadcastingList3[int]] = None,
    padding: BroadcastingList3[int] = 0,
    dilation: BroadcastingList3[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """Largest value of each window, and with ``return_indices`` where it was; see :func:`torch.nn.functional.max_pool3d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            steps = () if stride is None else stride
            return door().max_pool3d_with_indices(input, kernel_size, steps, padding, dilation, ceil_mode)
    return F.max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def _max_pool3d(
    input: Tensor,
    kernel_size: BroadcastingList3[int],
    stride: Optional[BroadcastingList3[int]] = None,
    padding: BroadcastingList3[int] = 0,
    dilation: BroadcastingList3[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    if not is_scripting():
        if not has_torch_function_unary(input):
            steps = () if stride is None else stride
            return door().max_pool3d(input, kernel_size, steps, padding, dilation, ceil_mode)
    return F.max_pool3d(input, kernel_size, stride, padding, dilation, ceil_mode)


max_pool3d = _either(max_pool3d_with_indices, _max_pool3d, 6)


def adaptive_max_pool1d_with_indices(
    input: Tensor, output_size: BroadcastingList1[int], return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """Largest value of each of ``output_size`` windows; see :func:`torch.nn.functional.adaptive_max_pool1d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            return door().adaptive_max_pool1d_with_indices(input, _sizes(output_size, input, 1))
    return F.adaptive_max_pool1d(input, output_size, return_indices=True)


def _adaptive_max_pool1d(
    input: Tensor, output_size: BroadcastingList1[int], return_indices: bool = False
) -> Tensor:
    if not is_scripting():
        if not has_torch_function_unary(input):
            return door().adaptive_max_pool1d(input, _sizes(output_size, input, 1))
    return F.adaptive_max_pool1d(input, output_size)


adaptive_max_pool1d = _either(adaptive_max_pool1d_with_indices, _adaptive_max_pool1d, 2)


def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: BroadcastingList2[int], return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """Largest value of each of ``output_size`` windows; see :func:`torch.nn.functional.adaptive_max_pool2d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            return door().adaptive_max_pool2d_with_indices(input, _sizes(output_size, input, 2))
    return F.adaptive_max_pool2d(input, output_size, return_indices=True)


def _adaptive_max_pool2d(
    input: Tensor, output_size: BroadcastingList2[int], return_indices: bool = False
) -> Tensor:
    if not is_scripting():
        if not has_torch_function_unary(input):
            return door().adaptive_max_pool2d(input, _sizes(output_size, input, 2))
    return F.adaptive_max_pool2d(input, output_size)


adaptive_max_pool2d = _either(adaptive_max_pool2d_with_indices, _adaptive_max_pool2d, 2)


def adaptive_max_pool3d_with_indices(
    input: Tensor, output_size: BroadcastingList3[int], return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """Largest value of each of ``output_size`` windows; see :func:`torch.nn.functional.adaptive_max_pool3d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            return door().adaptive_max_pool3d_with_indices(input, _sizes(output_size, input, 3))
    return F.adaptive_max_pool3d(input, output_size, return_indices=True)


def _adaptive_max_pool3d(
    input: Tensor, output_size: BroadcastingList3[int], return_indices: bool = False
) -> Tensor:
    if not is_scripting():
        if not has_torch_function_unary(input):
            return door().adaptive_max_pool3d(input, _sizes(output_size, input, 3))
    return F.adaptive_max_pool3d(input, output_size)


adaptive_max_pool3d = _either(adaptive_max_pool3d_with_indices, _adaptive_max_pool3d, 2)


def avg_pool1d(
    input: Tensor,
    kernel_size: BroadcastingList1[int],
    stride: Optional[BroadcastingList1[int]] = None,
    padding: BroadcastingList1[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean of each window; see :func:`torch.nn.functional.avg_pool1d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            steps = () if stride is None else stride
            return door().avg_pool1d(input, kernel_size, steps, padding, ceil_mode, count_include_pad)
    if stride is None:
        stride = kernel_size
    return F.avg_pool1d(input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    input: Tensor,
    kernel_size: BroadcastingList2[int],
    stride: Optional[BroadcastingList2[int]] = None,
    padding: BroadcastingList2[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Optional[int] = None,
) -> Tensor:
    """Mean of each window; see :func:`torch.nn.functional.avg_pool2d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            steps = () if stride is None else stride
            return door().avg_pool2d(
                input, kernel_size, steps, padding, ceil_mode, count_include_pad, divisor_override
            )
    if stride is None:
        stride = kernel_size
    return F.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: BroadcastingList3[int],
    stride: Optional[BroadcastingList3[int]] = None,
    padding: BroadcastingList3[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Optional[int] = None,
) -> Tensor:
    """Mean of each window; see :func:`torch.nn.functional.avg_pool3d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            steps = () if stride is None else stride
            return door().avg_pool3d(
                input, kernel_size, steps, padding, ceil_mode, count_include_pad, divisor_override
            )
    if stride is None:
        stride = kernel_size
    return F.avg_pool3d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool1d(input: Tensor, output_size: BroadcastingList1[int]) -> Tensor:
    """Mean of each of ``output_size`` windows; see :func:`torch.nn.functional.adaptive_avg_pool1d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            return door().adaptive_avg_pool1d(input, _sizes(output_size, input, 1))
    return F.adaptive_avg_pool1d(input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: BroadcastingList2[int]) -> Tensor:
    """Mean of each of ``output_size`` windows; see :func:`torch.nn.functional.adaptive_avg_pool2d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            return door().adaptive_avg_pool2d(input, _sizes(output_size, input, 2))
    return F.adaptive_avg_pool2d(input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: BroadcastingList3[int]) -> Tensor:
    """Mean of each of ``output_size`` windows; see :func:`torch.nn.functional.adaptive_avg_pool3d`."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            return door().adaptive_avg_pool3d(input, _sizes(output_size, input, 3))
    return F.adaptive_avg_pool3d(input, output_size)


def _power_average(
    pool: Any, input: Tensor, p: float, size: Any, stride: Any, ceil_mode: bool, rank: int
) -> Tensor:
    # The sign and relu are torch's: they make the gradient 0 where a window sums to 0.
    mean = pool(input.pow(p), size, stride, 0, ceil_mode)
    sizes = [size] * rank if isinstance(size, int) else list(size) * (rank // len(size))
    return (mean.sign() * mean.abs().relu()).mul(math.prod(sizes)).pow(1.0 / p)


def lp_pool1d(
    input: Tensor,
    norm_type: int | float,
    kernel_size: int,
    stride: Optional[BroadcastingList1[int]] = None,
    ceil_mode: bool = False,
) -> Tensor:
    """``(sum of x^p over the window)^(1/p)``; see :func:`torch.nn.functional.lp_pool1d`."""
    if not is_scripting():
        if not has_torch_function_unary(input) and math.isfinite(norm_type):
            return _power_average(avg_pool1d, input, norm_type, kernel_size, stride, ceil_mode, 1)
    return F.lp_pool1d(input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor,
    norm_type: int | float,
    kernel_size: BroadcastingList2[int],
    stride: Optional[BroadcastingList2[int]] = None,
    ceil_mode: bool = False,
) -> Tensor:
    """``(sum of x^p over the window)^(1/p)``; see :func:`torch.nn.functional.lp_pool2d`."""
    if not is_scripting():
        if not has_torch_function_unary(input) and math.isfinite(norm_type):
            return _power_average(avg_pool2d, input, norm_type, kernel_size, stride, ceil_mode, 2)
    return F.lp_pool2d(input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor,
    norm_type: int | float,
    kernel_size: BroadcastingList3[int],
    stride: Optional[BroadcastingList3[int]] = None,
    ceil_mode: bool = False,
) -> Tensor:
    """``(sum of x^p over the window)^(1/p)``; see :func:`torch.nn.functional.lp_pool3d`."""
    if not is_scripting():
        if not has_torch_function_unary(input) and math.isfinite(norm_type):
            return _power_average(avg_pool3d, input, norm_type, kernel_size, stride, ceil_mode, 3)
    return F.lp_pool3d(input, norm_type, kernel_size, stride, ceil_mode)
