"""`python -m fastnn demo`: two models on real data, with torch.nn and with fastnn side by side.

Both sides start from the same weights and see the same batches; epochs alternate between two processes. The exit
code is 1 when a check fails: the loss curves differ, predictions change with the library, or the accuracy is too low.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

import torch

from fastnn.bench.results import machine
from fastnn.demo import report
from fastnn.demo.data import Data, MissingError, require
from fastnn.demo.digits import DIGITS
from fastnn.demo.task import Task
from fastnn.demo.text import TEXT
from fastnn.demo.train import Epoch, difference, predict
from fastnn.demo.worker import Side, unpack
from fastnn.testing.progress import Progress

TASKS = {"digits": DIGITS, "text": TEXT}
CURVE_STEPS, QUICK_CURVE_STEPS = 50, 20
CURVE_LIMIT = 1e-3  # relative
OUTPUT_LIMIT = 1e-4  # largest difference of an output with the same state_dict
TIE = 1e-5  # two outputs that are this close are one prediction: rounding decides which is larger


def run(options: argparse.Namespace) -> int:
    """The command."""
    task = TASKS[options.task]
    try:
        require("matplotlib", "draws the plot")
        data = task.load()
    except MissingError as fault:
        print(fault, file=sys.stderr)
        return 2
    epochs = options.epochs or (task.quick_epochs if options.quick else task.epochs)
    steps = QUICK_CURVE_STEPS if options.quick else CURVE_STEPS
    threads = options.threads or torch.get_num_threads()
    print(report.opening(task, data, threads), flush=True)
    per_epoch = len(data.train_labels) // task.batch
    models: dict[str, Any] = {}
    with (
        Side("torch", task, data, threads) as torch_side,
        Side("fastnn", task, data, threads) as fast_side,
        Progress(2 * len(task.models) * (epochs * per_epoch + steps), "demo", not options.no_progress) as bar,
    ):
        sides = (torch_side, fast_side)
        for name in task.models:
            bar.print(report.epoch_head(name, epochs, task.unit))
            models[name] = _train(sides, name, epochs, bar)
            models[name]["curves"] = _curves(sides, name, steps, bar)
            models[name]["exchange"] = _exchange(sides, task, name, data)
            models[name]["sample"] = fast_side.ask("sample", name)
            bar.print(report.after(name, models[name]))
    checks = _checks(task, models, epochs)
    result = {
        "machine": {**machine(), "threads": threads},
        "task": options.task,
        "epochs": epochs,
        "models": models,
        "checks": checks,
    }
    print(report.summary(models, task.unit) + "\n" + report.verdicts(checks))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    report.draw(task, result, options.out / "results.png")
    print(f"written: {options.out / 'results.json'}, {options.out / 'results.png'}")
    return int(not all(check["ok"] for check in checks))


def _train(sides: tuple[Side, Side], name: str, epochs: int, bar: Progress) -> dict[str, Any]:
    """Trains both sides in turn, the first one changing from epoch to epoch; prints a line per epoch."""
    found: dict[str, list[Epoch]] = {side.side: [] for side in sides}
    for side in sides:
        bar.step(f"{name} {side.side}: start", 0)
        side.ask("start", name)
    for number in range(epochs):
        for side in sides if number % 2 == 0 else sides[::-1]:

            def tell(count: int, loss: float, text: str = f"{name} epoch {number + 1} {side.side}") -> None:
                bar.step(f"{text}: loss {loss:.4f}", count)

            found[side.side].append(side.epoch(name, number, tell))
        bar.print(report.epoch_line(number, *(found[side.side][-1] for side in sides)))
    return {side: [asdict(epoch) for epoch in results] for side, results in found.items()}


def _curves(sides: tuple[Side, Side], name: str, steps: int, bar: Progress) -> dict[str, Any]:
    """Both loss curves without dropout and how far they are apart."""
    curves: dict[str, Any] = {}
    for side in sides:
        curves[side.side] = side.ask("curve", name, steps)
        bar.step(f"{name} {side.side}: without dropout", steps)
    return {**curves, "difference": difference(curves["torch"], curves["fastnn"])}


def _exchange(sides: tuple[Side, Side], task: Task, name: str, data: Data) -> dict[str, Any]:
    """Carries each side's trained state_dict to the other library and compares the predictions.

    fastnn's outputs are held against torch's in float64: torch's own GRU in float32 was 2e-4 away from them in one
    prediction of several with the same weights, fastnn's 1e-5 in all.
    """
    found: dict[str, Any] = {}
    inputs = data.test_inputs
    other = {"torch": "fastnn", "fastnn": "torch"}
    for side in sides:
        state, outputs = unpack(side.ask("result", name))
        model = task.build(name, other[side.side])
        model.load_state_dict(state)
        moved = predict(model, inputs, task.batch)
        exact = task.build(name, "torch").double()
        exact.load_state_dict(state)
        expected = predict(exact, inputs.double() if inputs.is_floating_point() else inputs, task.batch)
        ours = outputs if side.side == "fastnn" else moved
        chosen = moved.gather(-1, outputs.argmax(-1, keepdim=True)).squeeze(-1)
        found[f"{side.side} -> {other[side.side]}"] = {
            "difference": float((ours - expected).abs().max()),
            "same": int((chosen >= moved.amax(-1) - TIE).sum()),
            "predictions": chosen.numel(),
        }
        found["parameters"] = [(key, list(p.shape)) for key, p in model.named_parameters()]
    return found


def _checks(task: Task, models: dict[str, Any], epochs: int) -> list[dict[str, Any]]:
    """What the run must show: each check with its sentence and whether it holds."""
    checks = []
    for name, found in models.items():
        apart = found["curves"]["difference"]
        steps = len(found["curves"]["torch"])
        text = f"{name}: loss curves without dropout agree over {steps} steps to {apart:.1e} (limit {CURVE_LIMIT:.0e})"
        checks.append({"what": text, "ok": apart <= CURVE_LIMIT})
        for way in ("torch -> fastnn", "fastnn -> torch"):
            moved = found["exchange"][way]
            ok = moved["difference"] <= OUTPUT_LIMIT and moved["same"] == moved["predictions"]
            text = (
                f"{name}: state_dict {way}: {moved['same']} of {moved['predictions']} predictions the same, "
                f"fastnn's outputs within {moved['difference']:.1e} of torch's in float64"
            )
            checks.append({"what": text, "ok": ok})
    for name, least in task.least.items() if epochs >= task.epochs else ():
        for side in ("torch", "fastnn"):
            accuracy = models[name][side][-1]["accuracy"]
            text = f"{name}, {side}: accuracy {accuracy:.1%} on held-out {task.unit} (at least {least:.0%})"
            checks.append({"what": text, "ok": accuracy >= least})
    return checks
