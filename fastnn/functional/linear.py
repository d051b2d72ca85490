"""The linear map with the signature of ``torch.nn.functional``."""

import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import door, has_torch_function, is_scripting

__all__ = ["linear"]


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``; see :func:`torch.nn.functional.linear`.

    Native in float32 and float64, for any leading dimensions and any strides. Under autocast torch's own op runs.
    """
    if not is_scripting():
        if not has_torch_function((input, weight, bias)):
            return door().linear(input, weight, bias)
    return F.linear(input, weight, bias)
