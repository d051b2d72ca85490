"""What every result says about the machine, and the files that it goes to."""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

import fastnn


def machine() -> dict[str, Any]:
    """What a result must say about where it was measured."""
    facts = fastnn.info()
    keys = ("fastnn", "torch", "python", "cpu capability")
    return {"cpu": cpu_name(), "date": time.strftime("%Y-%m-%d"), **{key: facts[key] for key in keys}}


def cpu_name() -> str:
    """The processor's name and torch's instruction set."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def write(options: argparse.Namespace, result: dict[str, Any], csv: str) -> None:
    """The files that --json and --csv name."""
    for path, text in ((options.json, json.dumps(result, indent=1) + "\n"), (options.csv, csv)):
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8")
