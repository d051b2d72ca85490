"""`python -m fastnn demo`: two models on real digits, with torch.nn and with fastnn side by side.

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
from fastnn.demo import data, report
from fastnn.demo.models import MODELS, build
from fastnn.demo.train import BATCH, Epoch, difference, predict
from fastnn.demo.worker import Side, unpack
from fastnn.testing.progress import Progress

EPOCHS, QUICK_EPOCHS = 8, 2
CURVE_STEPS, QUICK_CURVE_STEPS = 50, 20
CURVE_LIMIT = 1e-3  # relative
LEAST_ACCURACY = 0.97  # of the convolutional model after EPOCHS epochs
OUTPUT_LIMIT = 1e-4  # largest difference of an output when the state_dict moves to the other library


def run(options: argparse.Namespace) -> int:
    """The command."""
    fault = data.missing()
    if fault:
        print(fault, file=sys.stderr)
        return 2
    epochs = options.epochs or (QUICK_EPOCHS if options.quick else EPOCHS)
    steps = QUICK_CURVE_STEPS if options.quick else CURVE_STEPS
    threads = options.threads or torch.get_num_threads()
    digits = data.load()
    print(report.opening(digits, threads), flush=True)
    per_epoch = len(digits.train_labels) // BATCH
    models: dict[str, Any] = {}
    with (
        Side("torch", digits, threads) as torch_side,
        Side("fastnn", digits, threads) as fast_side,
        Progress(2 * len(MODELS) * (epochs * per_epoch + steps), "demo", not options.no_progress) as bar,
    ):
        for name in MODELS:
            models[name] = _train((torch_side, fast_side), name, epochs, bar)
            models[name]["curves"] = _curves((torch_side, fast_side), name, steps, bar)
            models[name]["exchange"] = _exchange((torch_side, fast_side), name, digits)
            bar.print(report.after(name, models[name]))
    checks = _checks(models, epochs)
    result = {
        "machine": {**machine(), "threads": threads},
        "epochs": epochs,
        "models": models,
        "checks": checks,
    }
    print(report.summary(models) + "\n" + report.verdicts(checks))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    report.draw(result, options.out / "results.png")
    print(f"written: {options.out / 'results.json'}, {options.out / 'results.png'}")
    return int(not all(check["ok"] for check in checks))


def _train(sides: tuple[Side, Side], name: str, epochs: int, bar: Progress) -> dict[str, Any]:
    """Trains both sides in turn, the first one changing from epoch to epoch; prints a line per epoch."""
    found: dict[str, list[Epoch]] = {side.side: [] for side in sides}
    for side in sides:
        bar.step(f"{name} {side.side}: start", 0)
        side.ask("start", name)
    bar.print(report.epoch_head(name, epochs))
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


def _exchange(sides: tuple[Side, Side], name: str, digits: data.Digits) -> dict[str, Any]:
    """Carries each side's trained state_dict to the other library and compares the predictions."""
    found: dict[str, Any] = {}
    other = {"torch": "fastnn", "fastnn": "torch"}
    for side in sides:
        state, outputs = unpack(side.ask("result", name))
        model = build(name, other[side.side])
        model.load_state_dict(state)
        moved = predict(model, digits.test_images)
        found[f"{side.side} -> {other[side.side]}"] = {
            "difference": float((moved - outputs).abs().max()),
            "same": int((moved.argmax(1) == outputs.argmax(1)).sum()),
            "images": len(outputs),
        }
        found["parameters"] = [(key, list(p.shape)) for key, p in model.named_parameters()]
    return found


def _checks(models: dict[str, Any], epochs: int) -> list[dict[str, Any]]:
    """What the run must show: each check with its sentence and whether it holds."""
    checks = []
    for name, found in models.items():
        apart = found["curves"]["difference"]
        steps = len(found["curves"]["torch"])
        text = f"{name}: loss curves without dropout agree over {steps} steps to {apart:.1e} (limit {CURVE_LIMIT:.0e})"
        checks.append({"what": text, "ok": apart <= CURVE_LIMIT})
        for way in ("torch -> fastnn", "fastnn -> torch"):
            moved = found["exchange"][way]
            ok = moved["difference"] <= OUTPUT_LIMIT and moved["same"] == moved["images"]
            text = f"{name}: state_dict {way}: {moved['same']} of {moved['images']} predictions the same, "
            checks.append({"what": text + f"outputs differ by {moved['difference']:.1e} at most", "ok": ok})
    if epochs >= EPOCHS:
        for side in ("torch", "fastnn"):
            accuracy = models["CNN"][side][-1]["accuracy"]
            text = f"CNN, {side}: accuracy {accuracy:.1%} on held-out digits (at least {LEAST_ACCURACY:.0%})"
            checks.append({"what": text, "ok": accuracy >= LEAST_ACCURACY})
    return checks
