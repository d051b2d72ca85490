"""How a functional call finds its kernel.

Eager calls take the cheapest door, ``_C.<op>`` (pybind11). Compilers can't look into that, so they get the same op
through ``torch.ops.fastnn``. Arguments that override torch functions (subclasses, fx proxies), scripting and ONNX
see ``torch.nn.functional``'s own function.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.jit import is_scripting
from torch.overrides import has_torch_function, has_torch_function_unary

from fastnn import _C

__all__ = ["door", "has_torch_function", "has_torch_function_unary", "is_scripting", "overwrite"]

_ops = torch.ops.fastnn


def door() -> Any:
    """The namespace to call ops from: ``_C`` in eager mode, ``torch.ops.fastnn`` where dynamo reads this code."""
    return _ops if is_dynamo_compiling() else _C


def overwrite(name: str, input: torch.Tensor, *parameters: float) -> torch.Tensor:
    """The in-place form of an activation. Compilers get torch's: they turn it into one that isn't in place."""
    if is_compiling():
        return getattr(F, name)(input, *parameters, inplace=True)
    return getattr(_C, name + "_")(input, *parameters)
