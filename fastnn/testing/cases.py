"""Cases as data: one description of a layer call, shared by tests and benchmarks.

A case names a class (`Conv2d`) and its constructor arguments, not an object, so that the same case builds
`torch.nn.Conv2d` and `fastnn.Conv2d`. `parity_cases()` are many small odd shapes, `bench_cases()` the realistic
sizes; the lists themselves are in `parity_cases.py`, `bench_cases.py` and `networks.py`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

FLOATS = ("float32", "float64")
ALL_DTYPES = ("float32", "float64", "bfloat16", "float16")

# Strided views that every op must take; a layout that does not exist for a shape is skipped by `layouts_of`.
ALL_LAYOUTS = ("contiguous", "offset", "sliced", "transposed", "expanded", "channels_last")


def library(side: str) -> ModuleType:
    """The module that has the layer classes: `torch.nn` for "torch", `fastnn` for "fastnn"."""
    return torch.nn if side == "torch" else importlib.import_module("fastnn")


@dataclass(frozen=True)
class Case:
    """One layer with its arguments and the input it is called with.

    family: the stem that owns it (linear, conv, pooling, batchnorm, normalization, activation, softmax, loss, dropout, embedding,
        attention, rnn, network, fused: networks given to `fastnn.fuse`).
    layer: class name in torch.nn, or a function of `networks.py`: families `network`, `fused` and `rnn`, some of `attention`.
    shape: sizes of the input, batch first.
    layouts: the input layouts to try, see `ALL_LAYOUTS`.
    values: what the input holds: normal, positive, large_mean, special (NaN, infinities, -0, denormals).
    exact: forward must equal torch bit for bit. random: the output is drawn, see `compare.py`.
    algorithm: the one of fastnn's that the case is about, where it has a limit of its own, see `compare.py`.
    call: further keyword arguments of the call, e.g. output_size. unpool: arguments of the pooling to undo.
    classes: the second input is a tensor of class indices below this, one for each position of the first.
    indices: the input is a tensor of indices below this, not of numbers.
    paired: the second input has the shape and dtype of the first, with numbers from [0, 1).
    """

    family: str
    layer: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ALL_DTYPES
    layouts: tuple[str, ...] = ALL_LAYOUTS
    train: bool = True
    values: str = "normal"
    exact: bool = False
    random: bool = False
    algorithm: str = ""
    call: dict[str, Any] = field(default_factory=dict)
    unpool: dict[str, Any] | None = None
    classes: int = 0
    indices: int = 0
    paired: bool = False
    quick: bool = False

    @property
    def name(self) -> str:
        """For example `Conv2d(4, 6, 3, stride=2) 2x4x9x8 eval`; unique within a list."""
        arguments = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        fused = "fused " if self.family == "fused" else ""
        parts = [f"{fused}{self.layer}({', '.join(arguments)})", "x".join(map(str, self.shape)) or "scalar"]
        parts += [f"{k}={v!r}" for k, v in self.call.items()]
        parts += [self.values] if self.values != "normal" else []
        parts += ["of probabilities"] if self.paired and self.layer == "CrossEntropyLoss" else []
        parts += [] if self.train else ["eval"]
        return " ".join(parts)

    @property
    def is_network(self) -> bool:
        return self.family in ("network", "fused")

    @property
    def is_function(self) -> bool:
        """Whether `layer` is a function of `networks.py`, not a class."""
        return not hasattr(torch.nn, self.layer)

    @property
    def in_this_torch(self) -> bool:
        """Whether torch's class takes the arguments: those of newer versions are no cases for an older one."""
        if self.is_function:
            return True
        parameters = inspect.signature(getattr(torch.nn, self.layer).__init__).parameters
        return set(self.kwargs) <= set(parameters) or "kwargs" in parameters

    @property
    def inplace(self) -> bool:
        return bool(self.kwargs.get("inplace", False))

    def build(self, side: str, seed: int = 0) -> torch.nn.Module:
        """The layer of one side in float32, its parameters and running statistics drawn from `seed`."""
        nn = library(side)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self.is_function:
                factory = getattr(importlib.import_module("fastnn.testing.networks"), self.layer)
                module: torch.nn.Module = factory(nn, *self.args, **self.kwargs)
            else:
                module = getattr(nn, self.layer)(*self.args, **self.kwargs)
            if self.layer.startswith("Lazy"):
                with torch.no_grad():
                    module(torch.randn(self.shape))
            _randomise_norms(module)
            if self.family == "fused" and side == "fastnn":
                nn.fuse(module)
        return module.train(self.train)

    def inputs(self, dtype: str = "float32", layout: str = "contiguous", seed: int = 1) -> list[torch.Tensor]:
        """The positional inputs of the call: the tensor, for max-unpooling the indices, for losses the targets.

        The values depend on the seed, the shape and `values` only, and are exact in bfloat16 where the dtype is
        a half type, in float32 otherwise, so that every side and the float64 reference see the same numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        kind = getattr(torch, dtype)
        if self.unpool is not None:
            pool = getattr(torch.nn, self.layer.replace("Unpool", "Pool"))(
                return_indices=True, **self.unpool["pool"]
            )
            x, indices = pool(torch.randn(self.unpool["shape"], generator=generator))
            return [apply_layout(x.to(kind), layout), indices]
        if self.indices:
            return [apply_layout(torch.randint(self.indices, self.shape, generator=generator), layout)]
        inputs = [apply_layout(_values(self.values, self.shape, generator).to(kind), layout)]
        if self.classes:
            positions = self.shape[:1] + self.shape[2:] if len(self.shape) > 1 else ()
            inputs.append(torch.randint(self.classes, positions, generator=generator))
        if self.paired:
            target = torch.rand(self.shape, generator=generator).bfloat16()
            inputs.append(apply_layout(target.to(kind), layout))
        return inputs


def _values(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A float32 tensor of `shape`; see Case.values."""
    x = torch.randn(shape, generator=generator)
    if kind == "positive":
        return x.abs() + 0.1
    if kind == "large_mean":
        return x * 0.5 + 30.0
    if kind == "special" and x.numel():
        odd = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-42, 88.0, -104.0, 1e30, -1e30]
        flat = x.view(-1)
        flat[:: max(1, flat.numel() // 23)] = torch.tensor(
            [odd[i % len(odd)] for i in range(len(flat[:: max(1, flat.numel() // 23)]))]
        )
    return x


def _randomise_norms(module: torch.nn.Module) -> None:
    """Gives every norm weights, biases and running statistics other than ones and zeros."""
    norms = (
        torch.nn.modules.batchnorm._NormBase, torch.nn.LayerNorm, torch.nn.RMSNorm, torch.nn.GroupNorm
    )  # fmt: skip
    for layer in module.modules():
        if not isinstance(layer, norms):
            continue
        with torch.no_grad():
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 2.0),
            ):
                tensor = getattr(layer, name, None)
                if tensor is not None:
                    tensor.uniform_(low, high)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()])


def _sliced(x: torch.Tensor) -> torch.Tensor:
    """Every second element of rows twice as long, one element into the storage."""
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1] + 1)
    view = wide[..., 1::2]
    return view.copy_(x)


def _offset(x: torch.Tensor) -> torch.Tensor:
    """Dense, but starting one element into the storage: never aligned to a vector."""
    return x.new_zeros(x.numel() + 1)[1:].view(x.shape).copy_(x)


_LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "offset": _offset,
    "sliced": _sliced,
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "expanded": lambda x: x[:1].contiguous().expand_as(x),
    "channels_last": _channels_last,
}


def apply_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    """`x` with the strides of `layout`; "expanded" repeats the first entry of dimension 0 with stride 0."""
    return _LAYOUTS[layout](x)


def moved(x: torch.Tensor, device: str) -> torch.Tensor:
    """`x` on the device with its strides and its offset into the storage."""
    numbers = x.untyped_storage().nbytes() // x.element_size()
    storage = x.as_strided((numbers,), (1,), 0).to(device)
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())


def layouts_of(case: Case) -> list[str]:
    """The layouts of the case that exist for its shape and give different strides."""
    dims, empty = len(case.shape), math.prod(case.shape) == 0
    possible = {
        "contiguous": True,
        "offset": not empty,
        "sliced": dims >= 1 and not empty,
        "transposed": dims >= 2 and not empty,
        "expanded": dims >= 2 and case.shape[0] > 1 and case.unpool is None,
        "channels_last": dims in (4, 5),
    }
    return [layout for layout in case.layouts if possible[layout]]


def select(cases: Iterable[Case], only: str | None = None) -> list[Case]:
    """The cases whose family is `only` or whose name has it as a substring (any case of letters)."""
    if not only:
        return list(cases)
    wanted = only.lower()
    return [c for c in cases if c.family == wanted or wanted in c.name.lower()]


def parity_cases(only: str | None = None) -> list[Case]:
    """Small cases that cover every constructor argument of every class with kernels."""
    cases = select(importlib.import_module("fastnn.testing.parity_cases").PARITY, only)
    return [case for case in cases if case.in_this_torch]


def bench_cases(only: str | None = None, quick: bool = False, *, memory: bool = False) -> list[Case]:
    """Cases of realistic size; `quick` keeps the few that stand for their family. memory: for `bench --memory`."""
    lists = importlib.import_module("fastnn.testing.bench_cases")
    cases = select(lists.MEMORY if memory else lists.BENCH, only)
    return [c for c in cases if c.quick] if quick else cases
