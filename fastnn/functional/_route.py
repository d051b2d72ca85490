"""How a functional call finds its kernel.

Eager calls take the cheapest door, ``_C.<op>`` (pybind11). Compilers can't look into that, so they get the same op
through ``torch.ops.fastnn``. Arguments that override torch functions (subclasses, fx proxies), scripting and ONNX
see ``torch.nn.functional``'s own function.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch.compiler import is_compiling
from torch.compiler import is_dynamo_compiling as compiling
from torch.jit import is_scripting
from torch.overrides import has_torch_function, has_torch_function_unary

from fastnn import _C

__all__ = [
    "compiled",
    "compiling",
    "door",
    "eager",
    "has_torch_function",
    "has_torch_function_unary",
    "is_scripting",
    "overwrite",
    "scripts_as",
]

compiled, eager = torch.ops.fastnn, _C

_Function = TypeVar("_Function", bound=Callable[..., Any])


def door() -> Any:
    """The namespace to call ops from: ``_C`` in eager mode, ``torch.ops.fastnn`` where dynamo reads this code."""
    return compiled if compiling() else eager


def scripts_as(torch_function: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """TorchScript compiles ``torch_function`` in place of the decorated one, which need not ask ``is_scripting()``.

    ``torch.jit.script`` looks for these two attributes, dynamo for a true value of the first.
    """

    def mark(function: _Function) -> _Function:
        vars(function).update(__script_if_tracing_wrapper=False, __original_fn=torch_function)
        return function

    return mark


def overwrite(name: str, input: torch.Tensor, *parameters: float) -> torch.Tensor:
    """The in-place form of an activation. Compilers get torch's: they turn it into one that isn't in place."""
    if is_compiling():
        return getattr(F, name)(input, *parameters, inplace=True)
    return getattr(eager, name + "_")(input, *parameters)
