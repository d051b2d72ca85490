"""What every fastnn layer shares."""

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn


class Native(nn.Module):
    """First base of a fastnn layer, ``class ReLU(Native, nn.ReLU)``; it adds no state.

    The instance (not the class) carries torch's ``__module__``: fx and export keep layers whole whose ``__module__``
    starts with ``torch.nn``, while pickle looks at the class. A user's subclass is the user's: fx looks into it.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What inspect.signature(cls) answers: the arguments of torch's __init__, which the one below would hide.
        init = next(c.__init__ for c in cls.__mro__ if c is not Native and "__init__" in vars(c))
        signature = inspect.signature(init)
        cls.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    if not TYPE_CHECKING:  # a type checker takes the arguments of torch's __init__

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # The last entry of __dict__, where torch's class ends: Module.__call__ reads its own attributes by their
            # position in the dict, and one place further would cost a small layer 0.2 us.
            if type(self).__module__.startswith("fastnn."):
                self.__dict__["__module__"] = "torch.nn.modules"


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Make ``module`` an instance of ``cls``, in place. Parameters, buffers, hooks and optimizers stay."""
    module.__class__ = cls
    if issubclass(cls, Native):
        module.__dict__["__module__"] = "torch.nn.modules"
    else:
        module.__dict__.pop("__module__", None)
