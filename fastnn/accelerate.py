"""Swap the layers of a model that exists for fastnn's, in place, and back."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import fastnn.modules
from fastnn.fuse import unfuse
from fastnn.modules._base import Native, set_class


def _twins() -> dict[type[nn.Module], type[nn.Module]]:
    """torch's class -> fastnn's class, for every layer with kernels of fastnn's own."""
    found: dict[type[nn.Module], type[nn.Module]] = {}
    for name, ours in vars(fastnn.modules).items():
        if isinstance(ours, type) and issubclass(ours, Native) and ours is not Native:
            found[getattr(nn, name)] = ours
    return found


TWINS = _twins()


@dataclass
class Report:
    """What :func:`accelerate` did: names of the swapped layers, and why others were left."""

    swapped: dict[str, str] = field(default_factory=dict)  # qualified name -> class name
    kept: dict[str, str] = field(default_factory=dict)  # qualified name -> reason

    def __str__(self) -> str:
        lines = [f"fastnn: {len(self.swapped)} layers swapped, {len(self.kept)} kept"]
        lines += [f"  {n:4d} x {kind}" for kind, n in sorted(Counter(self.swapped.values()).items())]
        lines += [f"  kept {name or '(the model itself)'}: {why}" for name, why in self.kept.items()]
        return "\n".join(lines)


def accelerate(
    model: nn.Module,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    *,
    allow_empty: bool = False,
) -> Report:
    """Turn each layer of ``model`` that has a fastnn twin into it, in place; :func:`revert` undoes it.

    Only the class of a layer changes: parameters, buffers, hooks, ``state_dict`` and optimizers stay as they are.
    A subclass of a torch layer is left alone, since its own ``forward`` may differ.

    Args:
        model: any module; it is changed in place.
        filter_fn: called with each candidate and its qualified name; False leaves it as it is.
        allow_empty: do not raise when there was nothing to swap.

    Returns:
        a :class:`Report`; ``print`` it.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: no layer matched, so nothing would be faster.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate(): model must be a torch.nn.Module, not {type(model).__name__}")
    report = Report()
    already = 0
    for name, module in model.named_modules():
        twin = TWINS.get(type(module))
        if twin is None:
            already += isinstance(module, Native)
            parent = next((base for base in type(module).__mro__ if base in TWINS), None)
            # The last one is MultiheadAttention's own: it reads the weight and never calls the layer.
            if parent is not None and not isinstance(module, (Native, NonDynamicallyQuantizableLinear)):
                report.kept[name] = f"{type(module).__name__} is a subclass of {parent.__name__}"
        elif filter_fn is not None and not filter_fn(module, name):
            report.kept[name] = "filter_fn said no"
        else:
            set_class(module, twin)
            report.swapped[name] = twin.__name__
    if not report.swapped and not already and not allow_empty:
        raise ValueError("accelerate(): no layer of this model has a fastnn twin\n" + str(report))
    return report


def revert(model: nn.Module) -> int:
    """Turn each fastnn layer of ``model`` back into torch's own class, in place; returns how many.

    :func:`fastnn.fuse` is undone, too.
    """
    unfuse(model)
    back = {ours: theirs for theirs, ours in TWINS.items()}
    count = 0
    for module in model.modules():
        if type(module) in back:
            set_class(module, back[type(module)])
            count += 1
    return count
