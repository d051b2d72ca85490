"""Losses with the signatures of ``torch.nn.functional``."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction

from fastnn.functional._route import door, has_torch_function, is_scripting

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "mse_loss", "nll_loss"]


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
    """Cross-entropy of logits and classes or class probabilities; see :func:`torch.nn.functional.cross_entropy`."""
    if not is_scripting():
        if not has_torch_function((input, target, weight)):
            if size_average is not None or reduce is not None:
                reduction = _reduction.legacy_get_string(size_average, reduce)
            kind = _reduction.get_enum(reduction)
            return door().cross_entropy(input, target, weight, kind, ignore_index, label_smoothing)
    return F.cross_entropy(
        input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
    )


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of log-probabilities and classes; see :func:`torch.nn.functional.nll_loss`."""
    if not is_scripting():
        if not has_torch_function((input, target, weight)):
            if size_average is not None or reduce is not None:
                reduction = _reduction.legacy_get_string(size_average, reduce)
            return door().nll_loss(input, target, weight, _reduction.get_enum(reduction), ignore_index)
    return F.nll_loss(input, target, weight, size_average, ignore_index, reduce, reduction)


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Squared differences; see :func:`torch.nn.functional.mse_loss`, which takes other shapes."""
    if not is_scripting():
        plain = size_average is None and reduce is None and target.size() == input.size()
        plain = plain and (weight is None or weight.size() == input.size())
        if plain and not has_torch_function((input, target, weight)):
            return door().mse_loss(input, target, weight, _reduction.get_enum(reduction))
    # torch's type stub does not know `weight`
    return F.mse_loss(input, target, size_average, reduce, reduction, weight)  # type: ignore[call-arg]


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of a sigmoid; see :func:`torch.nn.functional.binary_cross_entropy_with_logits`."""
    if not is_scripting():
        plain = size_average is None and reduce is None
        if plain and not has_torch_function((input, target, weight, pos_weight)):
            if target.size() != input.size():
                raise ValueError(
                    f"Target size ({target.size()}) must be the same as input size ({input.size()})"
                )
            kind = _reduction.get_enum(reduction)
            return door().binary_cross_entropy_with_logits(input, target, weight, pos_weight, kind)
    return F.binary_cross_entropy_with_logits(
        input, target, weight, size_average, reduce, reduction, pos_weight
    )
