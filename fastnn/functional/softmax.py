"""Softmax and its kin with the signatures of ``torch.nn.functional``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import door, has_torch_function_unary, is_scripting

__all__ = ["log_softmax", "softmax", "softmin"]


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """``exp(x) / sum(exp(x))`` over ``dim``; see :func:`torch.nn.functional.softmax`. Any shape."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            if dim is None:
                dim = F._get_softmax_dim("softmax", input.dim(), _stacklevel)
            return door().softmax(input if dtype is None else input.to(dtype), dim)
    return F.softmax(input, dim, _stacklevel, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """The logarithm of softmax over ``dim``; see :func:`torch.nn.functional.log_softmax`. Any shape."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            if dim is None:
                dim = F._get_softmax_dim("log_softmax", input.dim(), _stacklevel)
            return door().log_softmax(input if dtype is None else input.to(dtype), dim)
    return F.log_softmax(input, dim, _stacklevel, dtype)


def softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Tensor:
    """Softmax of ``-x`` over ``dim``; see :func:`torch.nn.functional.softmin`. Any shape."""
    if not is_scripting():
        if not has_torch_function_unary(input):
            if dim is None:
                dim = F._get_softmax_dim("softmin", input.dim(), _stacklevel)
            return door().softmin(input if dtype is None else input.to(dtype), dim)
    return F.softmin(input, dim, _stacklevel, dtype)
