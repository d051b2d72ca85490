"""Element-wise activations with the signatures of ``torch.nn.functional``."""

import torch.nn.functional as F
from torch import Tensor

from fastnn.functional._route import door, has_torch_function_unary, is_scripting

__all__ = ["relu"]


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``max(0, x)``, element by element; see :func:`torch.nn.functional.relu`. Any shape."""
    if not is_scripting():
        if not inplace and not has_torch_function_unary(input):
            return door().relu(input)
    return F.relu(input, inplace=inplace)
