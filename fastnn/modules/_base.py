"""What every fastnn layer shares."""

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import nn


class Native(nn.Module):
    """First base of a fastnn layer, ``class ReLU(Native, nn.ReLU)``; it adds no state.

    The instance (not the class) carries torch's ``__module__``: fx and export keep layers whole whose ``__module__``
    starts with ``torch.nn``, while pickle looks at the class. A user's subclass is the user's: fx looks into it.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("fastnn."):
            # torch's own, past the __init__ that a base of ours has got here.
            init = next(
                c.__init__ for c in cls.__mro__ if not issubclass(c, Native) and "__init__" in vars(c)
            )
            cls.__init__ = _then_torch_module(cls, init)


def _then_torch_module(cls: type[nn.Module], init: Callable[..., None]) -> Callable[..., None]:
    """torch's ``__init__`` and then the instance's ``__module__``, as the last entry of its dict.

    ``Module.__call__`` finds its own attributes by their place in the dict; one place further costs a small layer 0.2 us.
    """

    @functools.wraps(init)
    def initialise(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self) is cls:
            self.__module__ = "torch.nn.modules"

    return initialise


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Make ``module`` an instance of ``cls``, in place. Parameters, buffers, hooks and optimizers stay."""
    module.__class__ = cls
    if issubclass(cls, Native):
        module.__dict__["__module__"] = "torch.nn.modules"
    else:
        module.__dict__.pop("__module__", None)


class ScriptsAsTorch(Native):
    """A layer whose forward TorchScript can't read: it compiles torch's own, on the same parameters."""

    def __prepare_scriptable__(self) -> nn.Module:
        twin = copy.copy(self)
        set_class(twin, getattr(nn, type(self).__name__))
        return twin
