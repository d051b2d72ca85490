"""Make runs of layers one operation, in place, and back."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastnn.modules.chain import Chain, chains

__all__ = ["FuseReport", "FusedSequential", "fuse", "unfuse"]


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` that runs its chains of layers as one operation each.

    The layers stay what they are, with their names, parameters and ``state_dict``; called on their own they work as
    ever. A hook on a layer, or a layer exchanged for another, ends its fusion by itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if not torch.compiler.is_compiling():
                return self._run(input)
        for module in self:
            input = module(input)
        return input

    def chains(self) -> list[Chain]:
        """The chains that a call runs now."""
        return [step for step in self._steps() if isinstance(step, Chain)]

    def _run(self, input: Tensor) -> Tensor:
        for step in self._steps():
            input = step(input)
        return input

    def _steps(self) -> list[nn.Module | Chain]:
        layers = list(self._modules.values())
        key = [*layers, *map(type, layers)]
        known = self.__dict__.get("_plan")
        if known is None or known[0] != key:
            known = self.__dict__["_plan"] = (key, _plan(layers))
        return known[1]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}


def _plan(layers: list[nn.Module]) -> list[nn.Module | Chain]:
    steps: list[nn.Module | Chain] = []
    at = 0
    for found in chains(layers):
        steps += layers[at : found.start]
        steps.append(Chain(layers[found.start : found.stop]))
        at = found.stop
    return steps + layers[at:]


@dataclass
class FuseReport:
    """What :func:`fuse` did: the chains of each container, and why other layers stay on their own."""

    fused: dict[str, list[str]] = field(default_factory=dict)  # name of the container -> its chains
    kept: dict[str, str] = field(default_factory=dict)  # name of the container -> reason

    def __str__(self) -> str:
        count = sum(map(len, self.fused.values()))
        lines = [f"fastnn: {count} chains in {len(self.fused)} containers"]
        lines += [
            f"  {name or '(the model itself)'}: {chain}"
            for name, found in self.fused.items()
            for chain in found
        ]
        lines += [f"  kept {name or '(the model itself)'}: {why}" for name, why in self.kept.items()]
        return "\n".join(lines)


def fuse(model: nn.Module) -> FuseReport:
    """Run chains of layers as one operation, in place; :func:`unfuse` (and :func:`fastnn.revert`) undoes it.

    A chain is ``BatchNorm -> activation -> pooling -> Dropout``, two or more of these, each at most once and in this
    order, one after the other in an ``nn.Sequential``; torch's layers and fastnn's alike. Results are those of the
    layers one by one, in training and in eval, and so are ``state_dict``, parameters and the layers themselves.
    A chain runs as its layers where a layer has hooks, while compiling, tracing or scripting, under autocast and
    transforms, and on inputs that fastnn has no kernel for.

    Args:
        model: any module; it is changed in place.

    Returns:
        a :class:`FuseReport`; ``print`` it.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse(): model must be a torch.nn.Module, not {type(model).__name__}")
    report = FuseReport()
    for name, module in model.named_modules():
        if type(module) is nn.Sequential and chains(list(module)):
            module.__class__ = FusedSequential
        if isinstance(module, FusedSequential):
            report.fused[name] = [repr(chain) for chain in module.chains()]
        elif isinstance(module, nn.Sequential) and chains(list(module)):
            report.kept[name] = f"{type(module).__name__} is a subclass of Sequential"
    return report


def unfuse(model: nn.Module) -> int:
    """Undo :func:`fuse`, in place; returns the number of containers that were fused."""
    found: list[nn.Module] = [m for m in model.modules() if type(m) is FusedSequential]
    for module in found:
        module.__class__ = nn.Sequential
        module.__dict__.pop("_plan", None)
    return len(found)
