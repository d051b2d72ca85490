"""The demo's tables and its plot."""

from __future__ import annotations

import statistics
import textwrap
from pathlib import Path
from typing import Any

from fastnn.demo.data import Data
from fastnn.demo.task import Task
from fastnn.demo.train import Epoch

_COLOURS = {"torch": "#d1603d", "fastnn": "#1f6fb2"}
_MIB = 2**20


def opening(task: Task, data: Data, threads: int) -> str:
    """What is about to happen."""
    return (
        f"Data: {task.title}. {data.train_labels.numel():,} {task.unit} to train, {data.test_labels.numel():,} "
        f"held out; batches of {task.batch}{_length(data)}, threads: {threads}.\n"
        "The same initial weights and batches on both sides. "
        "Memory: highest resident memory of the side's process above\nits level before the first step. "
        "Ratio: torch's seconds over fastnn's, above 1 fastnn is faster."
    )


def _length(data: Data) -> str:
    """The length of a sample that has a label for each position."""
    return "" if data.train_labels.dim() == 1 else f" x {data.train_labels.shape[1]}"


def epoch_head(name: str, epochs: int, unit: str) -> str:
    """The head of a model's table; both sides' columns are `torch | fastnn`."""
    return (
        f"\n{name}, epochs: {epochs} (each column: torch | fastnn)\n"
        f"{'epoch':>5}  {'loss':^17}  {'accuracy':^15}  {'seconds':^15}  {unit + '/s':^15}  "
        f"{'memory MiB':^13}  {'ratio':>6}"
    )


def epoch_line(number: int, torch: Epoch, fastnn: Epoch) -> str:
    """One epoch of both sides."""
    return (
        f"{number + 1:5d}  {torch.loss:7.4f} | {fastnn.loss:7.4f}  {torch.accuracy:6.1%} | {fastnn.accuracy:6.1%}  "
        f"{torch.seconds:6.2f} | {fastnn.seconds:6.2f}  "
        f"{torch.per_second:6.0f} | {fastnn.per_second:6.0f}  "
        f"{torch.memory / _MIB:5.0f} | {fastnn.memory / _MIB:5.0f}  {torch.seconds / fastnn.seconds:5.2f}x"
    )


def after(name: str, found: dict[str, Any]) -> str:
    """The named parameters of a trained model, and its sample where there is one."""
    shapes = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in found["exchange"]["parameters"])
    text = f"named_parameters of {name}, the same on both sides: {shapes}"
    if found["sample"]:
        text += f"\n\nWritten by the {name} of fastnn:\n{textwrap.indent(found['sample'], '  | ', lambda _: True)}"
    return text


def medians(epochs: list[dict[str, Any]]) -> dict[str, float]:
    """Median speed and highest memory in bytes over the epochs."""
    speed = statistics.median(epoch["per_second"] for epoch in epochs)
    return {"per_second": speed, "memory": max(epoch["memory"] for epoch in epochs)}


def summary(models: dict[str, Any], unit: str) -> str:
    """One line per model: both sides' median speed and peak memory."""
    lines = [""]
    for name, found in models.items():
        torch, fastnn = medians(found["torch"]), medians(found["fastnn"])
        speed = fastnn["per_second"] / torch["per_second"]
        lines.append(
            f"{name:11} {torch['per_second']:8.0f} -> {fastnn['per_second']:8.0f} {unit}/s "
            f"({speed:.2f}x), {torch['memory'] / _MIB:.0f} -> {fastnn['memory'] / _MIB:.0f} MiB"
        )
    return "\n".join(lines)


def verdicts(checks: list[dict[str, Any]]) -> str:
    """One line per check."""
    return "\n".join(f"{'ok    ' if check['ok'] else 'FAILED'} {check['what']}" for check in checks)


def draw(task: Task, result: dict[str, Any], path: Path) -> None:
    """The plot: a loss curve per model, then bars of speed and of memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = result["models"]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    for axis, (name, found) in zip(axes[0], models.items(), strict=True):
        _loss(axis, name, found)
    bars = {name: {side: medians(found[side]) for side in _COLOURS} for name, found in models.items()}
    _bars(axes[1][0], f"Training speed, median epoch ({task.unit} per second)", bars, ("per_second", 1.0))
    _bars(axes[1][1], "Peak memory of training (MiB)", bars, ("memory", 1.0 / _MIB))
    machine = result["machine"]
    figure.suptitle(
        f"torch.nn and fastnn on {task.title}: {machine['cpu']}, threads: {machine['threads']}, "
        f"torch {machine['torch']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _loss(axis: Any, name: str, found: dict[str, Any]) -> None:
    """Training loss over the steps, fastnn dashed over torch."""
    for side, style in (("torch", "-"), ("fastnn", "--")):
        losses = [loss for epoch in found[side] for loss in epoch["losses"]]
        accuracy = found[side][-1]["accuracy"]
        axis.plot(
            losses, style, color=_COLOURS[side], linewidth=1.3, label=f"{side} (accuracy {accuracy:.1%})"
        )
    axis.set_yscale("log")
    axis.set(title=f"{name}: training loss", xlabel="step", ylabel="cross entropy")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)


def _bars(
    axis: Any, title: str, values: dict[str, dict[str, dict[str, float]]], unit: tuple[str, float]
) -> None:
    """Bars of both sides for each model, torch's at 1, labelled with the numbers; unit: key and its scale."""
    key, scale = unit
    for i, side in enumerate(_COLOURS):
        numbers = [values[name][side][key] for name in values]
        heights = [n / max(values[name]["torch"][key], 1e-9) for n, name in zip(numbers, values, strict=True)]
        places = [place + (i - 0.5) * 0.36 for place in range(len(values))]
        bars = axis.bar(places, heights, 0.34, color=_COLOURS[side], label=side)
        axis.bar_label(bars, [f"{n * scale:,.0f}" for n in numbers], padding=2, fontsize=9)
    axis.set_xticks(range(len(values)), list(values))
    axis.set(title=title, ylabel="relative to torch.nn")
    axis.margins(y=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=2, loc="upper center")
