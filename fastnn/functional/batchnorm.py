"""Batch normalisation with the signature of ``torch.nn.functional``."""

import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import door, has_torch_function, is_scripting

__all__ = ["batch_norm"]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel over the batch; see :func:`torch.nn.functional.batch_norm`.

    Native for ``(N, C)``, ``(N, C, L)`` and any more spatial dimensions, contiguous or channels last. The running
    statistics change only when training and only after every check has passed.
    """
    if not is_scripting():
        if not has_torch_function((input, running_mean, running_var, weight, bias)):
            # What torch refuses (one value per channel, an eps that isn't positive) gets torch's own error.
            alone = training and (len(input.size()) < 2 or input.numel() <= input.size(1))
            if eps > 0.0 and not alone:
                return door().batch_norm(
                    input, running_mean, running_var, weight, bias, training, momentum, eps
                )
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
