"""The rule of what counts as right: fastnn against torch.nn in float64 on the same values.

For every output, gradient and buffer, `error` is the largest absolute difference to the float64 reference. It
passes when

    error <= max(factor * error of torch's own op in that dtype, floor)   and   error <= cap * scale

factor is 2 forward (or that of the algorithm the case names) and 3 for gradients, scale the largest finite magnitude of
the reference, floor FLOOR_ULPS rounding units of the scale (so that a luckily exact torch does not fail an equally good
result). Ops marked exact must equal torch bit for bit. In float64 the reference is torch itself: torch's float32 error
on the same values, scaled by the ratio of the rounding units, stands for its float64 error there. NaN and infinities
must be in the same places. Random layers are checked against what they promise, see `random_layers.py`.

The gradient of a network is judged as one vector, by the cap alone, which is that of one op times the number of layers.
Torch's error is no measure there: where a ReLU's input is zero up to rounding, one float32 evaluation passes the
gradient on and another doesn't, and the gradients of all layers before it move by that element. Whether that happens to
torch's evaluation or to ours is chance (torch's error in `vgg` is 2e-5 on one input, in `resnet18` 0.4). The outputs are
continuous: they are held to the rule. So are the gradients of each layer by itself, and those of a network of smooth
layers (tests/test_training.py).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from fastnn.testing import random_layers
from fastnn.testing.cases import Case, moved

FORWARD_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
# Forward, for the cases that name one of these algorithms and where it is in use: Winograd's transforms round, and
# double the error of direct sums.
ALGORITHM_FACTORS = {"winograd": 3.0}
FLOOR_ULPS = 4.0
# In float64 torch is the reference, and the floor has to cover its own rounding: its batch norm's weight gradient over
# 8 x 56 x 57 elements is 105 units of the scale from a sum in extended precision (fastnn's: 3).
FLOOR_ULPS_FLOAT64 = 128.0
# Largest error relative to the scale that is accepted whatever torch's own error is.
CAPS = {"float64": 1e-10, "float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class Check:
    """One compared quantity. error, torch_error and limit are absolute; scale is that of the reference."""

    what: str
    ok: bool
    error: float = 0.0
    torch_error: float = 0.0
    limit: float = 0.0
    scale: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        verdict = "ok   " if self.ok else "WRONG"
        if self.note:
            return f"{verdict} {self.what}: {self.note}"
        return (
            f"{verdict} {self.what}: error {self.error:.3g}, torch's {self.torch_error:.3g}, "
            f"allowed {self.limit:.3g}, scale {self.scale:.3g}"
        )


@dataclass
class Verdict:
    """All checks of one case in one dtype and layout."""

    case: Case
    dtype: str
    layout: str
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    @property
    def worst(self) -> float:
        """The largest error as a fraction of what is allowed; 0 where everything is exact."""
        return max((c.error / c.limit for c in self.checks if c.limit > 0), default=0.0)

    def __str__(self) -> str:
        lines = [f"{self.case.name} [{self.dtype}, {self.layout}]: {'ok' if self.ok else 'WRONG'}"]
        return "\n".join(lines + [f"  {check}" for check in self.checks])

    def raise_if_wrong(self) -> None:
        if not self.ok:
            raise AssertionError(str(self))


@dataclass
class Result:
    """What one side produced: outputs, gradients and buffers by name, or the exception it raised."""

    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    error: Exception | None = None

    def on_cpu(self) -> Result:
        outputs, gradients, buffers = (
            {name: t.cpu() for name, t in group.items()}
            for group in (self.outputs, self.gradients, self.buffers)
        )
        return Result(outputs, gradients, buffers, self.error)


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """fastnn's strict mode, in which a fallback to torch's op is an error; nothing where fastnn has none."""
    mode = getattr(importlib.import_module("fastnn"), "strict", None)
    with mode() if mode is not None else contextlib.nullcontext():
        yield


def run_module(
    case: Case, module: torch.nn.Module, inputs: list[torch.Tensor], *, gradients: bool = True
) -> tuple[list[torch.Tensor], Result]:
    """Calls the module and, with gradients, its backward. Returns the tuple of outputs and the named result.

    The gradient that flows in is drawn from a fixed seed, so it is the same for every side.
    """
    x = inputs[0].detach().requires_grad_(gradients and inputs[0].is_floating_point())
    first = x.clone() if case.inplace else x
    raw = module(first, *inputs[1:], **case.call)
    outputs = list(raw) if isinstance(raw, tuple) else [raw]
    result = Result(outputs={f"output {i}" if i else "output": y.detach() for i, y in enumerate(outputs)})
    if gradients and outputs[0].requires_grad:
        tensors = {"input": x, **dict(module.named_parameters())}
        wanted = {name: t for name, t in tensors.items() if t.is_floating_point()}
        grads = torch.autograd.grad(
            outputs[0], list(wanted.values()), incoming_gradient(outputs[0]), allow_unused=True
        )
        for name, grad in zip(wanted, grads, strict=True):
            if grad is not None:
                result.gradients[f"gradient of {name}"] = grad
    result.buffers = {f"buffer {name}": b.detach().clone() for name, b in module.named_buffers()}
    return outputs, result


def incoming_gradient(y: torch.Tensor) -> torch.Tensor:
    """A gradient for `y`, exact in bfloat16, so that every dtype sees the same values."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(y.shape, generator=generator).bfloat16().to(y.device, y.dtype)


def _try(case: Case, module: torch.nn.Module, inputs: list[torch.Tensor], gradients: bool) -> Result:
    try:
        return run_module(case, module, inputs, gradients=gradients)[1]
    except Exception as error:  # compared with what the other side raises
        return Result(error=error)


def _as(inputs: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    return [t.to(dtype) if t.is_floating_point() else t for t in inputs]


def check(
    case: Case,
    dtype: str = "float32",
    layout: str = "contiguous",
    *,
    gradients: bool = True,
    native: bool = False,
    device: str = "cpu",
) -> Verdict:
    """Runs the case on fastnn, torch and in float64, and judges the values, NaN places, dtypes and strides.

    native: run fastnn in strict mode, so that a fallback counts as a failure. device: where fastnn and torch run; the
    float64 reference stays on the CPU.
    """
    verdict = Verdict(case, dtype, layout)
    kind = getattr(torch, dtype)
    inputs = case.inputs(dtype, layout)
    torch_module, fast_module = build_pair(case, kind)
    initial = {name: value.clone() for name, value in torch_module.state_dict().items()}
    there = inputs if device == "cpu" else [moved(t, device) for t in inputs]
    with strict() if native else contextlib.nullcontext():
        ours = _try(case, fast_module.to(device), there, gradients)
    if case.random and ours.error is None:
        verdict.checks += _random_checks(fast_module, there, ours)
        return verdict
    ours, theirs = ours.on_cpu(), _try(case, torch_module.to(device), there, gradients).on_cpu()
    if isinstance(theirs.error, NotImplementedError) and not ours.error:
        # More than torch has: float64, rounded, stands for torch.
        rounded = _reference(case, initial, torch.float64, _as(inputs, torch.float64), gradients)
        outputs, slopes = (
            {k: v.to(kind) for k, v in group.items()} for group in (rounded.outputs, rounded.gradients)
        )
        theirs = Result(outputs, slopes, rounded.buffers)
    if ours.error or theirs.error:
        verdict.checks.append(_compare_errors(ours.error, theirs.error))
        return verdict
    reference = _reference(case, initial, torch.float64, _as(inputs, torch.float64), gradients)
    scaled = theirs
    if dtype == "float64":  # torch's float32 error, later scaled, and its float32 reference
        single = _as(inputs, torch.float32)
        scaled = _reference(case, initial, torch.float32, single, gradients)
    layers = sum(not any(module.children()) for module in torch_module.modules())
    verdict.checks += _compare_results(case, dtype, layers, ours, theirs, scaled, reference)
    return verdict


def build_pair(case: Case, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The torch and the fastnn module with the same parameters, in `dtype`."""
    torch_module, fast_module = case.build("torch").to(dtype), case.build("fastnn").to(dtype)
    fast_module.load_state_dict(torch_module.state_dict())
    return torch_module, fast_module


def _reference(
    case: Case,
    state: dict[str, torch.Tensor],
    dtype: torch.dtype,
    inputs: list[torch.Tensor],
    gradients: bool,
) -> Result:
    module = case.build("torch").to(dtype)
    module.load_state_dict(state)
    return _try(case, module, inputs, gradients)


def _compare_errors(ours: Exception | None, theirs: Exception | None) -> Check:
    same = theirs is not None and isinstance(ours, type(theirs))
    note = f"fastnn raised {ours!r:.200}, torch {theirs!r:.200}"
    return Check("exception", same, note=note)


def _random_checks(module: torch.nn.Module, inputs: list[torch.Tensor], ours: Result) -> list[Check]:
    y, gradient = ours.outputs["output"], ours.gradients.get("gradient of input")
    faults = random_layers.faults(module, inputs[0], y, incoming_gradient(y), gradient)
    return [Check("output", False, note=fault) for fault in faults] or [
        Check("output", True, note="as promised")
    ]


@dataclass(frozen=True)
class _Common:
    """What all tensors of a network share; the defaults leave a single layer's tensors on their own.

    kinks: the values jump where a rounding error moves an activation across zero; only the cap holds.
    """

    scale: float = 0.0
    layers: int = 1
    kinks: bool = False


def _compare_results(
    case: Case, dtype: str, layers: int,
    ours: Result, theirs: Result, scaled: Result, reference: Result,
) -> list[Check]:  # fmt: skip
    checks = []
    missing = set(theirs.gradients) ^ set(ours.gradients)
    if missing:
        checks.append(Check("gradients", False, note=f"present on one side only: {sorted(missing)}"))
    for group, factor in (
        ("outputs", ALGORITHM_FACTORS.get(case.algorithm, FORWARD_FACTOR)),
        ("gradients", GRADIENT_FACTOR),
        ("buffers", FORWARD_FACTOR),
    ):
        a, b, s, r = (getattr(side, group) for side in (ours, theirs, scaled, reference))
        common = _Common()
        if case.is_network:
            common = _Common(
                scale=max((_scale(t) for t in r.values()), default=0.0),
                kinks=group == "gradients",
                layers=layers,
            )
        for name in b:
            if name not in a:
                continue
            if group == "outputs":
                checks += _compare_form(name, a[name], b[name])
            if a[name].shape != b[name].shape:
                continue
            exact = case.exact and group == "outputs"
            checks.append(
                _compare_values(name, dtype, factor, exact, common, a[name], b[name], s[name], r[name])
            )
    return checks


def _compare_form(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> list[Check]:
    """Shape, dtype and, where a size leaves no choice, strides."""
    faults = []
    if ours.shape != theirs.shape:
        faults.append(f"shape {tuple(ours.shape)}, torch's {tuple(theirs.shape)}")
    elif _strides(ours) != _strides(theirs):
        faults.append(f"strides {ours.stride()}, torch's {theirs.stride()} for sizes {tuple(ours.shape)}")
    if ours.dtype != theirs.dtype:
        faults.append(f"dtype {ours.dtype}, torch's {theirs.dtype}")
    return [Check(name, False, note=fault) for fault in faults]


def _strides(x: torch.Tensor) -> list[int]:
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1] if x.numel() else []


def _scale(reference: torch.Tensor) -> float:
    values = reference[torch.isfinite(reference)] if reference.is_floating_point() else reference
    return float(values.abs().max()) if values.numel() else 0.0


def _difference(values: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest finite absolute difference; infinite when NaN or infinities are in different places.

    A value that overflows the dtype of `values` but not float64 counts as an infinity on both sides.
    """
    expected = reference.to(values.dtype)
    finite = torch.isfinite(expected)
    odd_values, odd_expected = values[~finite], expected[~finite]
    if not torch.equal(torch.isnan(values), torch.isnan(expected)):
        return float("inf")
    if not torch.equal(odd_values.nan_to_num(nan=0.0), odd_expected.nan_to_num(nan=0.0)):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    return float((values[finite].double() - reference[finite].double()).abs().max())


def _compare_values(
    name: str, dtype: str, factor: float, exact: bool, common: _Common,
    ours: torch.Tensor, theirs: torch.Tensor, scaled: torch.Tensor, reference: torch.Tensor,
) -> Check:  # fmt: skip
    if not ours.is_floating_point():
        same = torch.equal(ours, theirs)
        return Check(name, same, note="" if same else f"{int((ours != theirs).sum())} integers differ")
    if exact:
        same = torch.equal(torch.isnan(ours), torch.isnan(theirs)) and torch.equal(
            ours.nan_to_num(nan=0.0), theirs.nan_to_num(nan=0.0)
        )
        return Check(
            name,
            same,
            note="" if same else f"not bitwise torch's; difference {_difference(ours, theirs):.3g}",
        )
    scale = max(_scale(reference), common.scale)
    unit = torch.finfo(ours.dtype).eps / 2
    error, torch_error = _difference(ours, reference), _difference(scaled, reference)
    floor = FLOOR_ULPS * 2 * unit * scale
    if dtype == "float64":
        torch_error *= unit / (torch.finfo(torch.float32).eps / 2)
        floor = FLOOR_ULPS_FLOAT64 * 2 * unit * scale
    if torch_error == float("inf"):
        # torch itself puts NaN or infinities elsewhere than exact arithmetic does, e.g. GELU(inf) = NaN in float32:
        # either answer is right.
        error, torch_error = min(error, _difference(ours, theirs.double())), 0.0
    limit = float("inf") if common.kinks else max(factor * torch_error, floor)
    limit = min(limit, max(CAPS[dtype] * common.layers * scale, torch.finfo(ours.dtype).tiny))
    return Check(name, error <= limit, error, torch_error, limit, scale)
