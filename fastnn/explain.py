"""See what ran: which layers used fastnn's kernels, which algorithm, and why torch's op ran otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastnn import _C
from fastnn.fuse import chain_members
from fastnn.modules._base import Native


@dataclass
class Row:
    """One layer of an :class:`Explanation`."""

    name: str
    layer: str
    native: bool
    detail: str
    calls: int


@dataclass
class Explanation:
    """What :func:`explain` saw, layer by layer."""

    rows: list[Row] = field(default_factory=list)

    @property
    def native(self) -> list[str]:
        """Names of the layers that ran on fastnn's kernels alone."""
        return [row.name for row in self.rows if row.native]

    @property
    def fallbacks(self) -> dict[str, str]:
        """Names of the layers that ran torch's op (or never ran) and why."""
        return {row.name: row.detail for row in self.rows if not row.native}

    def to_dict(self) -> list[dict[str, Any]]:
        return [vars(row) for row in self.rows]

    def __str__(self) -> str:
        head = ("layer", "class", "ran on", "calls")
        table = [head]
        for row in self.rows:
            ran_on = f"{'fastnn' if row.native else 'torch'}: {row.detail}"
            table.append((row.name or "(model)", row.layer, ran_on, str(row.calls)))
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table
        )


def _summarise(name: str, module: nn.Module, calls: list[list[tuple[str, str, str]]]) -> Row:
    records = [record for call in calls for record in call]
    reasons = list(dict.fromkeys(f"{op}: {reason}" for op, _, reason in records if reason))
    native = [(op, algorithm) for op, algorithm, reason in records if not reason]
    ops = list(dict.fromkeys(f"{op} ({algorithm})" if algorithm else op for op, algorithm in native))
    if not calls:
        detail = "never called (its parent bypasses it)"
    elif reasons:
        detail = "; ".join(reasons)
    elif ops:
        detail = ", ".join(ops)
    elif isinstance(module, Native):
        detail = "nothing to compute, or torch's op by the layer's own choice"
    else:
        detail = "no fastnn kernel in this layer"
    return Row(name, type(module).__name__, bool(ops) and not reasons, detail, len(calls))


def explain(model: nn.Module, *inputs: Any, **kwargs: Any) -> Explanation:
    """Run ``model(*inputs, **kwargs)`` once without gradients and tell what each layer ran on.

    The model's mode (train or eval) and its buffers, e.g. running statistics, are as before afterwards; the random
    generator is too.

    Returns:
        an :class:`Explanation`; ``print`` it.
    """
    seen: dict[str, list[list[tuple[str, str, str]]]] = {}
    # A call is worth a row when ops ran directly in that layer, or when it is a leaf.
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    stack: list[str] = []
    handles = []

    def collect() -> None:
        records = _C.take_records()
        if stack and records:
            seen.setdefault(stack[-1], [[]])[-1].extend(records)

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            collect()
            stack.append(name)
            seen.setdefault(name, []).append([])

        return hook

    def leave(*_: Any) -> None:
        collect()
        stack.pop()

    # A hook would end the fusion of a layer that runs in a chain.
    members = chain_members(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for name, module in model.named_modules():
        if module not in members:
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave, always_call=True))
    _C.start_recording()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model(*inputs, **kwargs)
    finally:
        _C.stop_recording()
        _C.take_records()
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
    result = Explanation()
    for name, module in model.named_modules():
        calls = seen.get(name, [])
        if module in members:
            ran = [r for call in seen.get(members[module], []) for r in call]
            native = bool(ran) and not any(reason for _, _, reason in ran)
            where = members[module] or "(model)"
            result.rows.append(Row(name, type(module).__name__, native, f"in a chain of {where}", 0))
        elif name in leaves or any(calls):
            result.rows.append(_summarise(name, module, calls))
    return result


@contextmanager
def strict() -> Iterator[None]:
    """Within this block a call that would fall back to torch's op raises RuntimeError instead, process-wide.

    For tests and benchmarks: it proves that the numbers are fastnn's.
    """
    before = _C.strict()
    _C.set_strict(True)
    try:
        yield
    finally:
        _C.set_strict(before)
