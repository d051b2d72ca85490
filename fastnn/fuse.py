"""Make runs of layers one operation, in place, and back."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastnn.fuse_forward import FusedForward, UnfitError, chains_of, fused_class, original_class
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

    def chain_members(self) -> list[nn.Module]:
        """The layers that the chains take."""
        return [layer for chain in self.chains() for layer in chain.layers]

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
    for name, module in list(model.named_modules()):
        try:
            found = _fuse_container(module)
        except UnfitError as reason:
            report.kept[name] = str(reason)
        else:
            if found:
                report.fused[name] = found
    return report


def _fuse_container(module: nn.Module) -> list[str]:
    """Fuses the chains of one container; returns them in words."""
    if isinstance(module, nn.Sequential) and type(module) in (nn.Sequential, FusedSequential):
        if chains(list(module)):
            module.__class__ = FusedSequential
        return [repr(chain) for chain in module.chains()] if isinstance(module, FusedSequential) else []
    own = not original_class(type(module)).__module__.startswith(("torch.", "fastnn."))
    if not own or not list(module.children()):
        return []
    found = chains_of(module)
    if found:
        module.__class__ = fused_class(original_class(type(module)))
    return found


def unfuse(model: nn.Module) -> int:
    """Undo :func:`fuse`, in place; returns the number of containers that were fused."""
    count = 0
    for module in model.modules():
        kind = type(module)
        if kind is not FusedSequential and not issubclass(kind, FusedForward):
            continue
        module.__class__ = nn.Sequential if kind is FusedSequential else original_class(kind)
        module.__dict__.pop("_plan", None)
        count += 1
    return count


def chain_members(model: nn.Module) -> dict[nn.Module, str]:
    """Every layer that runs in a chain, and the name of the container that runs it."""
    fused = ((n, m) for n, m in model.named_modules() if isinstance(m, (FusedSequential, FusedForward)))
    return {layer: name for name, container in fused for layer in container.chain_members()}
