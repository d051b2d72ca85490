"""Layer, RMS, group and instance normalisation with the signatures of ``torch.nn.functional``."""

import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import door, has_torch_function, is_scripting

__all__ = ["group_norm", "instance_norm", "layer_norm", "rms_norm"]


def layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last dimensions; see :func:`torch.nn.functional.layer_norm`."""
    if not is_scripting():
        if not has_torch_function((input, weight, bias)):
            return door().layer_norm(input, normalized_shape, weight, bias, eps)
    return F.layer_norm(input, normalized_shape, weight, bias, eps)


def rms_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Divide by the root mean square of the last dimensions; see :func:`torch.nn.functional.rms_norm`."""
    if not is_scripting():
        if not has_torch_function((input, weight)):
            return door().rms_norm(input, normalized_shape, weight, eps)
    return F.rms_norm(input, normalized_shape, weight, eps)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise groups of channels of each sample; see :func:`torch.nn.functional.group_norm`.

    Native for ``(N, C, ...)`` with any spatial dimensions, contiguous or channels last.
    """
    if not is_scripting():
        if not has_torch_function((input, weight, bias)):
            # What torch refuses in Python (one value per group, too few dimensions) gets torch's own error.
            if input.dim() >= 2 and num_groups > 0 and input.numel() > input.size(0) * num_groups:
                return door().group_norm(input, num_groups, weight, bias, eps)
    return F.group_norm(input, num_groups, weight, bias, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel of each sample; see :func:`torch.nn.functional.instance_norm`.

    The running statistics change only with ``use_input_stats`` and only after every check has passed.
    """
    if not is_scripting():
        if not has_torch_function((input, running_mean, running_var, weight, bias)):
            # One value per channel gets torch's own error.
            if not use_input_stats or (input.dim() > 2 and input.numel() > input.size(0) * input.size(1)):
                return door().instance_norm(
                    input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
                )
    return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
