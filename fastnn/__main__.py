"""`python -m fastnn info|demo|bench|explain|check`. What a command needs is imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        choices=("digits", "text"),
        default="digits",
        help="digits (the default): images of digits; text: a text of Python's own, character by character",
    )
    parser.add_argument("--quick", action="store_true", help="half a minute: fewer epochs and steps")
    parser.add_argument(
        "--epochs", type=int, help="epochs of each model (digits: 8, text: 3; with --quick 2 and 1)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder of results.json and results.png"
    )
    parser.add_argument("--threads", type=int, help="threads of both sides")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="TEXT", help="a family, or a part of a case's name")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory of a training step in place of times"
    )
    parser.add_argument("--threads", type=int, help="threads of all sides")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows as CSV")
    parser.add_argument("--quick", action="store_true", help="few cases, short rounds: under a minute")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODULE:NAME", help="a module object, or a function without arguments"
    )
    parser.add_argument(
        "--shape", action="append", default=[], metavar="SIZES", help="of an input: 8x3x224x224"
    )
    parser.add_argument("--eval", action="store_true", help="in eval mode")


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="TEXT", help="a family, or a part of a case's name")
    parser.add_argument("--dtype", action="append", help="float32 (the default), float64, bfloat16, float16")
    parser.add_argument("--layouts", action="store_true", help="strided inputs too, not only contiguous ones")
    parser.add_argument("--strict", action="store_true", help="a fallback to torch's op counts as wrong")


# command: (help, its arguments, module and function that runs it and returns the exit code)
_COMMANDS = {
    "info": ("versions, capability, what runs on which kernel", _add_info, "fastnn.testing.commands:info"),
    "demo": (
        "train on real digits or a text with torch.nn and fastnn side by side",
        _add_demo,
        "fastnn.demo.main:run",
    ),
    "bench": ("fastnn beside torch.nn, layer by layer", _add_bench, "fastnn.bench.main:run"),
    "explain": ("what each layer of a model ran on", _add_explain, "fastnn.testing.commands:explain"),
    "check": ("compare fastnn with torch.nn in float64 here", _add_check, "fastnn.testing.commands:check"),
}


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fastnn", description="fastnn: torch.nn with other engines."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, add, target) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        add(command)
        command.set_defaults(target=target)
    options = parser.parse_args(arguments)
    module, function = options.target.split(":")
    code: int = getattr(importlib.import_module(module), function)(options)
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
