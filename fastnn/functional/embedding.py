"""Embeddings with the signatures of ``torch.nn.functional``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import door, has_torch_function, is_scripting

__all__ = ["embedding", "embedding_bag"]

_MODES = {"sum": 0, "mean": 1, "max": 2}


def _renorm(weight: Tensor, input: Tensor, max_norm: float | None, norm_type: float) -> None:
    """Rows that are asked for and longer than ``max_norm`` become that long, in place: torch's op."""
    if max_norm is not None:
        with torch.no_grad():
            torch.embedding_renorm_(weight, input, max_norm, norm_type)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of ``weight`` by index; see :func:`torch.nn.functional.embedding`.

    The gradient of ``weight`` is dense and the same in every bit for any number of threads. ``sparse=True`` is torch's op.
    """
    if not is_scripting():
        if not has_torch_function((input, weight)):
            rows = weight.size(0)
            if padding_idx is None or -rows <= padding_idx < max(rows, 1):
                padding_idx = -1 if padding_idx is None else padding_idx + rows * (padding_idx < 0)
                if max_norm is not None:
                    input = input.contiguous()
                    _renorm(weight, input, max_norm, norm_type)
                return door().embedding(weight, input, padding_idx, scale_grad_by_freq, sparse)
    return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima of rows of ``weight``; see :func:`torch.nn.functional.embedding_bag`."""
    if not is_scripting():
        if not has_torch_function((input, weight, offsets, per_sample_weights)):
            if _fits(
                input, weight, offsets, scale_grad_by_freq, mode, sparse, per_sample_weights, padding_idx
            ):
                _renorm(weight, input.reshape(-1), max_norm, norm_type)
                padding_idx = -1 if padding_idx is None else padding_idx + weight.size(0) * (padding_idx < 0)
                return door().embedding_bag(
                    weight,
                    input,
                    offsets,
                    scale_grad_by_freq,
                    _MODES[mode],
                    per_sample_weights,
                    include_last_offset and input.dim() == 1,
                    padding_idx,
                )
    return F.embedding_bag(
        input,
        weight,
        offsets,
        max_norm,
        norm_type,
        scale_grad_by_freq,
        mode,
        sparse,
        per_sample_weights,
        include_last_offset,
        padding_idx,
    )


def _fits(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    scale_grad_by_freq: bool,
    mode: str,
    sparse: bool,
    per_sample_weights: Tensor | None,
    padding_idx: int | None,
) -> bool:
    """Whether torch's function would go on to its op; the rest are its errors, sparse gradients and nested tensors."""
    if sparse or mode not in _MODES or (mode == "max" and scale_grad_by_freq):
        return False
    if weight.dim() != 2 or weight.dtype == torch.long or input.is_nested:
        return False
    if per_sample_weights is not None and (mode != "sum" or per_sample_weights.size() != input.size()):
        return False
    if padding_idx is not None and not -weight.size(0) <= padding_idx < weight.size(0):
        return False
    if offsets is None:
        return input.dim() == 2 and input.size(1) > 0
    return input.dim() == 1 and offsets.dim() == 1
