"""Looks into the objects that are compiled once per instruction set.

A weak symbol there (an inline or template function with linkage) may be the copy that the linker keeps for
the whole library: AVX-512 code then runs on a processor without it. Static initialisers would run
such code at load time, before any choice was made.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def output(*command: str | Path) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def faults_of(path: Path, isa: str) -> Iterator[str]:
    name = f"{isa}: {path.name}"
    for line in output("nm", "--demangle", path):
        found = re.match(r"^[0-9a-f ]{16} (\w) (.+)$", line)
        if not found:
            continue
        kind, symbol = found.groups()
        if kind in "wWvVu":
            yield f"{name}: weak symbol {symbol}"
        elif kind == "U":
            # C functions are fine (memcpy, libm); of C++ only fastnn's own.
            cpp = "::" in symbol or "operator" in symbol or symbol.startswith(("__cxa", "__gxx"))
            if cpp and not symbol.startswith("fastnn::"):
                yield f"{name}: uses {symbol}"
        elif kind.isupper() and not symbol.startswith(f"fastnn::cpu::{isa}::"):
            yield f"{name}: global symbol {symbol} outside fastnn::cpu::{isa}"
    for line in output("readelf", "--section-headers", "--wide", path):
        if ".init_array" in line or ".ctors" in line:
            yield f"{name}: a static initialiser"


def main() -> int:
    seen = 0
    faults: list[str] = []
    for folder in sorted(ROOT.glob("build/*/CMakeFiles/fastnn_*.dir/csrc/cpu/kernels")):
        build, isa = (
            folder.parents[4].name,
            folder.parents[2].name.removeprefix("fastnn_").removesuffix(".dir"),
        )
        if build == "sanitize":  # the sanitizers add symbols of their own
            continue
        for path in sorted(folder.rglob("*.o")):
            if not (ROOT / "csrc/cpu/kernels" / path.relative_to(folder).with_suffix("")).exists():
                continue  # left over from a source that is gone
            seen += 1
            faults += [f"{build}: {fault}" for fault in faults_of(path, isa)]
    for line in faults:
        print(line)
    if seen == 0:
        print("symbols: no objects: build first (make build)")
        return 1
    print(f"symbols: {seen} objects, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
