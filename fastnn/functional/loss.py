"""Losses with the signatures of ``torch.nn.functional``."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction

from fastnn.functional._route import door, has_torch_function, is_scripting

__all__ = ["cross_entropy"]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits and classes; see :func:`torch.nn.functional.cross_entropy`."""
    if not is_scripting():
        if not has_torch_function((input, target, weight)):
            if size_average is not None or reduce is not None:
                reduction = _reduction.legacy_get_string(size_average, reduce)
            kind = _reduction.get_enum(reduction)
            return door().cross_entropy(input, target, weight, kind, ignore_index, label_smoothing)
    return F.cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )
