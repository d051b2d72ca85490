"""Tensor sizes from 1 KB to 256 MB, fastnn against torch: `python benchmarks/sweep.py`, three minutes.

ReLU, BatchNorm2d in training and MaxPool2d(2) on powers of two, NCHW, forward and forward+backward; both sides in turn
in one process, medians. Writes benchmarks/results/sweep.json and docs/sweep.png, and prints every size at which fastnn
is slower than torch by more than 5%.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

import fastnn
from fastnn.bench.measure import PASSES, forward_of, threads, training_of
from fastnn.bench.results import machine
from fastnn.testing.cases import Case
from fastnn.testing.compare import strict
from fastnn.testing.progress import Progress
from fastnn.testing.timing import Budget, interleave

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PLOT = ROOT / "benchmarks" / "results" / "sweep.json", ROOT / "docs" / "sweep.png"
POWERS = range(10, 29)  # of two, bytes of the input
LAYERS = ("ReLU", "BatchNorm2d", "MaxPool2d")
SLOWER = 1 / 1.05  # a ratio below this is printed
_BUDGET = Budget(seconds=0.25, min_rounds=5)
_COLOURS = {"forward": "#1f6fb2", "forward+backward": "#d1603d"}


def shape_of(power: int) -> tuple[int, int, int, int]:
    """N x C x H x W of 2^power bytes: planes of 8x8 to 64x64, at most 64 channels, the rest is the batch."""
    elements = power - 2
    side = min(6, 3 + (elements - 8) // 4)
    channels = min(6, elements - 2 * side)
    return 2 ** (elements - 2 * side - channels), 2**channels, 2**side, 2**side


def case_of(layer: str, power: int) -> Case:
    shape = shape_of(power)
    arguments = {"ReLU": (), "BatchNorm2d": (shape[1],), "MaxPool2d": (2,)}
    return Case("sweep", layer, arguments[layer], shape=shape)


def measure(layer: str, power: int) -> list[dict[str, Any]]:
    """A row per pass."""
    case = case_of(layer, power)
    modules = {side: case.build(side) for side in ("torch", "fastnn")}
    modules["fastnn"].load_state_dict(modules["torch"].state_dict())
    inputs = case.inputs()
    rows = []
    for name, make in zip(PASSES, (forward_of, training_of), strict=True):
        with strict():
            runs = {side: make(case, module, inputs) for side, module in modules.items()}
            timings = interleave(runs, _BUDGET)
        row: dict[str, Any] = {"layer": layer, "passed": name, "bytes": 2**power, "shape": case.shape}
        for side, timing in timings.items():
            row[side], row[f"{side}_quartiles"] = timing.median, (timing.low, timing.high)
        rows.append({**row, "ratio": row["torch"] / row["fastnn"]})
    return rows


def size_text(size: int) -> str:
    """1 KB, 64 MB: powers of 1024."""
    return f"{size >> 20} MB" if size >= 2**20 else f"{size >> 10} KB"


def line(row: dict[str, Any]) -> str:
    mark = "  slower" if row["ratio"] < SLOWER else ""
    return (
        f"{row['layer']:12} {size_text(row['bytes']):>7} {row['passed']:17} torch {row['torch'] * 1e6:10.1f} us  "
        f"fastnn {row['fastnn'] * 1e6:10.1f} us  {row['ratio']:6.2f}x{mark}"
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Ratio over bytes, a panel per layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(LAYERS), figsize=(13, 4), layout="constrained")
    for axis, layer in zip(axes, LAYERS, strict=True):
        rows = [row for row in result["rows"] if row["layer"] == layer]
        for name, colour in _COLOURS.items():
            points = [(row["bytes"], row["ratio"]) for row in rows if row["passed"] == name]
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=4)
        sizes, ratios = sorted({row["bytes"] for row in rows}), [row["ratio"] for row in rows]
        low, high = math.floor(math.log2(min(*ratios, 0.8))), math.ceil(math.log2(max(*ratios, 1.5)))
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(sizes[::4], [size_text(size) for size in sizes[::4]])
        axis.set_yticks(
            [2.0**p for p in range(low, high + 1)], [f"{2.0**p:g}x" for p in range(low, high + 1)]
        )
        axis.axhspan(2.0**low, SLOWER, color="#00000010")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=layer, xlabel="bytes of the input", ylim=(2.0**low, 2.0**high))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("torch's time over fastnn's")
    axes[0].legend(frameon=False)
    here = result["machine"]
    figure.suptitle(
        f"{here['cpu']}, {here['threads']} threads, torch {here['torch']}, {here['date']}", fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layer", choices=LAYERS, action="append", help="only this one; writes no files")
    parser.add_argument(
        "--least", type=int, default=0, metavar="MB", help="only from this size on; writes no files"
    )
    parser.add_argument("--retain", choices=("pages", "huge"), help="on memory that stays; writes no files")
    parser.add_argument("--threads", type=int, help="threads of both sides")
    parser.add_argument("--draw", action="store_true", help="only draws the plot from the results that exist")
    options = parser.parse_args()
    if options.draw:
        draw(json.loads(RESULTS.read_text(encoding="utf-8")), PLOT)
        return
    layers, powers = options.layer or LAYERS, [p for p in POWERS if 2**p >= options.least << 20]
    if options.retain:
        fastnn.memory.retain(huge_pages=options.retain == "huge")
    rows: list[dict[str, Any]] = []
    with threads(options.threads), Progress(len(layers) * len(powers), "sweep") as bar:
        for layer in layers:
            for power in powers:
                bar.step(f"{layer} {size_text(2**power)}")
                for row in measure(layer, power):
                    rows.append(row)
                    bar.print(line(row))
        result = {
            "section": "sweep",
            "machine": {**machine(), "threads": torch.get_num_threads()},
            "rows": rows,
        }
    slower = [row for row in rows if row["ratio"] < SLOWER]
    print(f"\n{len(slower)} of {len(rows)} slower than torch by more than 5%")
    print("\n".join(map(line, slower)))
    if not (options.layer or options.least or options.retain):
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(result, PLOT)


if __name__ == "__main__":
    main()
