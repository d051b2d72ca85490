"""One bench case: all sides built from the same weights, checked against float64, timed in turn."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch

from fastnn.testing import compare
from fastnn.testing.cases import Case
from fastnn.testing.cost import floors
from fastnn.testing.limits import Limits
from fastnn.testing.timing import Budget, Timing, interleave

PASSES = ("forward", "forward+backward")
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass
class Row:
    """One case and pass. Times in seconds per call; ratios above 1 are wins of fastnn.

    ratio: torch over fastnn, input in torch's default layout.
    ratio_channels_last: torch over fastnn, both given channels_last.
    limit: the time that the machine's physical limits leave no way around, over fastnn's time.
    status: ok, WRONG (a value outside the rule of compare.py) or ERROR (an exception, or a fallback to torch's op).
    """

    family: str
    name: str
    passed: str
    status: str = "ok"
    torch: float | None = None
    torch_channels_last: float | None = None
    fastnn: float | None = None
    fastnn_channels_last: float | None = None
    ratio: float | None = None
    ratio_channels_last: float | None = None
    limit: float | None = None
    error: float | None = None
    note: str = ""
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def forward_of(case: Case, module: torch.nn.Module, inputs: list[torch.Tensor]) -> Callable[[], object]:
    """A call of the module without gradients."""

    def run() -> object:
        with torch.no_grad():
            return module(*inputs, **case.call)

    return run


def training_of(case: Case, module: torch.nn.Module, inputs: list[torch.Tensor]) -> Callable[[], object]:
    """A call and its backward: gradients of all parameters, and of the input except for whole networks."""
    x = inputs[0].detach()
    x.requires_grad_(not case.is_network and x.is_floating_point())
    wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
    y = module(x, *inputs[1:], **case.call).detach()
    dy = torch.empty_like(y).copy_(
        compare.incoming_gradient(y)
    )  # in y's memory format, as the next layer gives it

    def run() -> object:
        y = module(x, *inputs[1:], **case.call)
        return torch.autograd.grad(y, wanted, dy)

    return run


def _sides(case: Case) -> dict[str, tuple[torch.nn.Module, list[torch.Tensor]]]:
    """Name of the side: its module and inputs. channels_last sides only where the input has such a layout."""
    ours, theirs = case.build("fastnn"), case.build("torch")
    ours.load_state_dict(theirs.state_dict())
    inputs = case.inputs()
    sides = {"torch": (theirs, inputs), "fastnn": (ours, inputs)}
    layout = _FORMATS.get(inputs[0].dim())
    if layout is not None:
        moved = [t.contiguous(memory_format=layout) if t.dim() == inputs[0].dim() else t for t in inputs]
        for name, side in (("torch_channels_last", "torch"), ("fastnn_channels_last", "fastnn")):
            module = case.build(side)
            module.load_state_dict(theirs.state_dict())
            sides[name] = (module.to(memory_format=layout), moved)  # type: ignore[call-overload]
    return sides


def measure(case: Case, limits: Limits, budget: Budget) -> list[Row]:
    """The rows of the case, one for each of `PASSES`. Exceptions of fastnn become the status of the row."""
    rows = [Row(case.family, case.name, name) for name in PASSES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            verdict = compare.check(case, native=True)
            sides = _sides(case)
            for row, make, floor in zip(rows, (forward_of, training_of), floors(case, limits), strict=True):
                with compare.strict():
                    runs = {name: make(case, *side) for name, side in sides.items()}
                    _fill(row, interleave(runs, budget), floor)
        except Exception as error:
            for row in rows:
                row.status, row.note = "ERROR", f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return rows
    if not verdict.ok:
        wrong = next(check for check in verdict.checks if not check.ok)
        for row in rows:
            row.status, row.note = "WRONG", str(wrong).removeprefix("WRONG ")
    for row in rows:
        row.error = verdict.worst
    return rows


def _fill(row: Row, timings: dict[str, Timing], floor: float) -> None:
    for name, timing in timings.items():
        setattr(row, name, timing.median)
        row.spread[name] = (timing.low, timing.high)
    fast, fast_last = timings["fastnn"].median, timings.get("fastnn_channels_last")
    row.ratio = timings["torch"].median / fast
    if fast_last is not None:
        row.ratio_channels_last = timings["torch_channels_last"].median / fast_last.median
    row.limit = floor / fast


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """torch's thread count for the block; None leaves it."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
