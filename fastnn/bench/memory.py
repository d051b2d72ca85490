"""`python -m fastnn bench --memory`: memory of one training step, torch eager and fastnn, each in its own process.

    peak  highest resident memory during forward and backward, above the level with the layer and its input. The
          gradient that flows in counts, so do scratch memory, compiled kernels and copies that a library keeps
          from the first step on.
    kept  what is resident more after the forward than before: the output and all that waits for the backward.

Resident memory counts every allocator, the libraries' own and the C++ nodes' too; freed blocks go back to the system
at once, so it is what is in use. A new process per number, forked from a server that has all libraries loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import torch

from fastnn.bench.measure import training_of
from fastnn.bench.results import machine, write
from fastnn.bench.table import as_csv, geometric_mean
from fastnn.testing.cases import Case, bench_cases
from fastnn.testing.compare import strict
from fastnn.testing.progress import Progress
from fastnn.testing.resident import Memory, give_back_at_once

SIDES = ("torch", "fastnn")
_WARM_UP = 2  # steps: what stays from the first on is part of a step's peak, what only the first needs is not
_MIB = 2**20
_LEAST = _MIB // 4  # below that, single pages and Python's own objects count
_HEAD = ("case", "torch peak", "fastnn", "share", "torch kept", "fastnn", "share", "")
_WIDTHS = (58, 11, 7, 6, 11, 7, 6, 0)


def _start_torch() -> None:
    """What torch sets up once in a process is no layer's memory: 30 MiB of Python modules, threads."""
    x = torch.ones(1 << 18, requires_grad=True)
    torch.autograd.grad(x.relu(), x, torch.ones_like(x))


def measure(case: Case, side: str) -> dict[str, int]:
    """Bytes of `peak` and `kept` of one side, in this process; see the module's docstring."""
    give_back_at_once()
    module, inputs = case.build(side), case.inputs()
    _start_torch()
    gc.collect()
    memory = Memory()
    step = training_of(case, module, inputs)
    for _ in range(_WARM_UP):
        step()
    before = memory.now()
    x = inputs[0].detach()
    y = module(x.requires_grad_(case.family != "network" and x.is_floating_point()), *inputs[1:], **case.call)
    kept = memory.now() - before
    del y
    memory.reset()
    step()
    return {"peak": memory.peak(), "kept": max(0, kept)}


def _serve(connection: Connection, case: Case, side: str, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        with strict() if side == "fastnn" else contextlib.nullcontext():
            connection.send(measure(case, side))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0][:200])


def measure_apart(case: Case, side: str, threads: int) -> dict[str, int]:
    """`measure` in a process of its own; RuntimeError where it fails or dies."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, case, side, threads))
    process.start()
    theirs.close()
    try:
        result: dict[str, int] | str = ours.recv()
    except EOFError:
        result = "its process ended without an answer"
    process.join()
    if isinstance(result, str):
        raise RuntimeError(f"{side}: {result}")
    return result


def row_of(case: Case, threads: int) -> dict[str, Any]:
    """One row: bytes of both sides, fastnn's share of torch's, status `ok` or ERROR with a note."""
    row: dict[str, Any] = {"family": case.family, "name": case.name, "status": "ok", "note": ""}
    try:
        for side in SIDES:
            for key, value in measure_apart(case, side, threads).items():
                row[f"{side}_{key}"] = value
    except RuntimeError as error:
        return {**row, "status": "ERROR", "note": str(error)}
    for key in ("peak", "kept"):
        ours, theirs = row[f"fastnn_{key}"], row[f"torch_{key}"]
        row[f"{key}_share"] = ours / theirs if theirs > _LEAST else None
    return row


def mark(row: dict[str, Any]) -> str:
    """ERROR with its reason; "loss" where fastnn's peak is higher, by 1% and by a quarter of a MiB at least."""
    if row["status"] != "ok":
        return f"{row['status']} {row['note']}"
    more = row["fastnn_peak"] - row["torch_peak"]
    return "loss" if more > max(0.01 * row["torch_peak"], _LEAST) else ""


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def cells(row: dict[str, Any]) -> list[str]:
    """The row as text: MiB of peak and kept, shares in percent."""
    values = [row["name"]]
    for key in ("peak", "kept"):
        values += [f"{row[f'{s}_{key}'] / _MIB:.1f}" if f"{s}_{key}" in row else "-" for s in SIDES]
        values.append(_share(row.get(f"{key}_share")))
    return [*values, mark(row)]


def _line(values: list[str]) -> str:
    first = values[0][: _WIDTHS[0]].ljust(_WIDTHS[0])
    return " ".join([first, *(v.rjust(w) for v, w in zip(values[1:], _WIDTHS[1:], strict=True))]).rstrip()


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Per family as text: its name, number of cases, geometric means of the shares, losses."""
    summary = []
    for family in dict.fromkeys(row["family"] for row in rows):
        members = [row for row in rows if row["family"] == family]
        means = (
            geometric_mean([row[key] for row in members if row.get(key)])
            for key in ("peak_share", "kept_share")
        )
        losses = sum(mark(row) == "loss" for row in members)
        summary.append([family, str(len(members)), *map(_share, means), str(losses)])
    return summary


def markdown(result: dict[str, Any]) -> str:
    """The README's section: machine, a line per family, the networks and the losses; all rows to unfold."""

    def table(rows: list[dict[str, Any]]) -> list[str]:
        head = ["| " + " | ".join(_HEAD) + " |", "|---|--:|--:|--:|--:|--:|--:|---|"]
        return [*head, *(f"| `{c[0]}` | " + " | ".join(c[1:]) + " |" for c in map(cells, rows))]

    rows, machine = result["rows"], result["machine"]
    return "\n".join([
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, float32, {machine['date']}. MiB of "
        "resident memory. Peak: highest during forward and backward, above the layer and its input; kept: the output "
        "and what waits for the backward; share: fastnn's part of torch's, below 100% is less than torch.",
        "", "| family | cases | peak | kept | losses |", "|---|--:|--:|--:|--:|",
        *("| " + " | ".join(line) + " |" for line in summarise(rows)),
        "", *table([row for row in rows if row["family"] == "network" or mark(row)]),
        "", "<details><summary>All rows</summary>", "", *table(rows), "", "</details>",
    ])  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """The command: prints as it measures, writes the files asked for; 1 when a row is an error."""
    cases = bench_cases(options.only, options.quick, memory=True)
    if not cases:
        print(f"bench: no case matches {options.only!r}")
        return 2
    threads = options.threads or torch.get_num_threads()
    rows = []
    with Progress(len(cases), "memory", not options.no_progress) as bar:
        bar.print(
            f"{threads} threads; MiB of one training step; peak: highest above the layer and its input; kept: the\n"
            "output and what waits for the backward; share: fastnn's part of torch's, below 100% is less than torch\n"
        )
        bar.print(_line(list(_HEAD)))
        for case in cases:
            bar.step(case.name)
            rows.append(row_of(case, threads))
            bar.print(_line(cells(rows[-1])))
    print(f"\n{'family':14} {'cases':>5} {'peak':>6} {'kept':>6} {'losses':>6}")
    for family, *numbers in summarise(rows):
        print(f"{family:14} {numbers[0]:>5} {numbers[1]:>6} {numbers[2]:>6} {numbers[3]:>6}")
    losses, errors = (sum(mark(row).startswith(what) for row in rows) for what in ("loss", "ERROR"))
    print(f"\nall {len(rows)} rows: {losses} losses, {errors} ERROR")
    result = {"section": "memory", "machine": {**machine(), "threads": threads}, "rows": rows}
    write(options, result, as_csv(rows))
    return int(errors > 0)
