"""The stages of `scripts/gpu.py` that need torch: `python -m fastnn.testing.gpu STAGE --seconds S --to FILE`.

Each stage runs in a process of its own, for a failed kernel leaves the process without a device. It appends one JSON
object per line to FILE as soon as it has one, so that whatever ends it early leaves what was found; it stops by itself
when its seconds are over, and says so in a last line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastnn.testing import gpu_bench, gpu_graphs, gpu_parity


class Out:
    """Where a stage writes its rows; prints a line of each."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._deadline = path, time.monotonic() + seconds

    def row(self, **values: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        print(" ".join(f"{key}={value}" for key, value in values.items()), flush=True)

    def over(self) -> bool:
        return time.monotonic() > self._deadline


STAGES: dict[str, Callable[[Any], None]] = {
    "ceilings": gpu_bench.ceilings,
    "parity": gpu_parity.parity,
    "sanitized": gpu_parity.sanitized,
    "graphs": gpu_graphs.graphs,
    "bench": gpu_bench.bench,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args(arguments)
    out = Out(options.to, options.seconds)
    if not torch.cuda.is_available():
        print(f"gpu {options.stage}: no CUDA device is visible")
        return 3
    STAGES[options.stage](out)
    if out.over():
        out.row(status="cut", note="the time of this stage was over")
    return 0


if __name__ == "__main__":
    sys.exit(main())
