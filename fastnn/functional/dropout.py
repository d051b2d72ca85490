"""The dropout family with the signatures of ``torch.nn.functional``.

Masks follow from torch's CPU generator, so ``torch.manual_seed`` rules them, but for the same seed they are not the
masks of torch's own op: the generator only gives the start of a stream, from which each element's decision follows by
its position. No mask is kept for backward.
"""

import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import door, has_torch_function_unary, is_scripting

__all__ = ["alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"]


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability ``p``; see :func:`torch.nn.functional.dropout`. Any shape."""
    if not is_scripting():
        if 0.0 <= p <= 1.0 and not has_torch_function_unary(input):
            ops = door()
            return ops.dropout_(input, p, training) if inplace else ops.dropout(input, p, training)
    return F.dropout(input, p, training, inplace)


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Dropout that keeps mean and variance; see :func:`torch.nn.functional.alpha_dropout`. Any shape."""
    if not is_scripting():
        if 0.0 <= p <= 1.0 and not has_torch_function_unary(input):
            ops = door()
            return (
                ops.alpha_dropout_(input, p, training) if inplace else ops.alpha_dropout(input, p, training)
            )
    return F.alpha_dropout(input, p, training, inplace)


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Alpha dropout of whole channels, ``(N, C, *)``; see :func:`torch.nn.functional.feature_alpha_dropout`."""
    if not is_scripting():
        if 0.0 <= p <= 1.0 and not has_torch_function_unary(input):
            ops = door()
            if inplace:
                return ops.feature_alpha_dropout_(input, p, training)
            return ops.feature_alpha_dropout(input, p, training)
    return F.feature_alpha_dropout(input, p, training, inplace)


def _feature_dropout(input: Tensor, p: float, training: bool, inplace: bool, batched: bool) -> Tensor:
    ops = door()
    if inplace:
        # The change goes through a view, so an unbatched input keeps its own shape.
        ops.feature_dropout_(input if batched else input.unsqueeze(0), p, training)
        return input
    if batched:
        return ops.feature_dropout(input, p, training)
    return ops.feature_dropout(input.unsqueeze(0), p, training).squeeze(0)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of ``(N, C, L)`` or ``(C, L)``; see :func:`torch.nn.functional.dropout1d`."""
    if not is_scripting():
        if 0.0 <= p <= 1.0 and not has_torch_function_unary(input) and input.dim() in (2, 3):
            return _feature_dropout(input, p, training, inplace, input.dim() == 3)
    return F.dropout1d(input, p, training, inplace)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of ``(N, C, H, W)``; see :func:`torch.nn.functional.dropout2d`.

    Other shapes, which torch deprecates with a warning, are torch's own.
    """
    if not is_scripting():
        if 0.0 <= p <= 1.0 and not has_torch_function_unary(input) and input.dim() == 4:
            return _feature_dropout(input, p, training, inplace, True)
    return F.dropout2d(input, p, training, inplace)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of ``(N, C, D, H, W)`` or ``(C, D, H, W)``; see :func:`torch.nn.functional.dropout3d`."""
    if not is_scripting():
        if 0.0 <= p <= 1.0 and not has_torch_function_unary(input) and input.dim() in (4, 5):
            return _feature_dropout(input, p, training, inplace, input.dim() == 5)
    return F.dropout3d(input, p, training, inplace)
