"""What the inner loop of the matrix product asks of a core in one step of k, by its instructions: no machine needed.

Disassembles the register tiles of csrc/cpu/kernels/gemm.cpp as they were built, and prints a table. With --check it
fails where a tile has no such loop, spills a register to the stack, or takes more instructions than BOUNDS allow.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# (instruction set, type, rows, registers of columns) of the tiles of full height: most instructions beside the
# multiply-adds, one for each row and register, and the loads, one for each of both. Prefetches, pointers, the loop.
BOUNDS = {
    ("avx512", "float", 14, 2): 12,
    ("avx512", "double", 14, 2): 12,
    ("avx2", "float", 6, 2): 10,
    ("avx2", "double", 6, 2): 10,
}
Tile = tuple[str, str, int, int]

_FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
_LINE = re.compile(r"^ +([0-9a-f]+):\t(\S+) *(.*)$")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one step of k. A multiply-add that reads memory counts as a load too. stack: vectors that went there."""

    multiply_adds: int
    loads: int
    stores: int
    prefetches: int
    others: int
    stack: int

    @property
    def rest(self) -> int:
        return self.stores + self.prefetches + self.others


Instruction = tuple[int, str, str]  # address, name, operands


def functions(text: str) -> dict[str, list[Instruction]]:
    """Name to instructions from what `objdump --disassemble --demangle` prints."""
    found: dict[str, list[Instruction]] = {}
    body: list[Instruction] = []
    for line in text.splitlines():
        if head := _FUNCTION.match(line):
            body = found.setdefault(head[1], [])
        elif match := _LINE.match(line):
            body.append((int(match[1], 16), match[2], match[3]))
    return found


def inner_loop(body: list[Instruction]) -> list[Instruction]:
    """The loop with the most multiply-adds that has no other inside; empty where there is none."""
    best: list[Instruction] = []
    for address, name, operands in body:
        target = re.match(r"([0-9a-f]+)\b", operands)
        if not name.startswith("j") or target is None or not int(target[1], 16) <= address:
            continue
        loop = [i for i in body if int(target[1], 16) <= i[0] <= address]
        inside = [i for i in loop[:-1] if i[1].startswith("j")]
        if not inside and _adds(loop) > _adds(best):
            best = loop
    return best


def _adds(loop: list[Instruction]) -> int:
    return sum(name.startswith("vfmadd") for _, name, _ in loop)


def count(loop: list[Instruction], tile: Tile) -> Counts:
    """Per step: a loop may take several at once."""
    _, _, rows, registers = tile
    steps = max(1, _adds(loop) // (rows * registers))
    adds = loads = stores = prefetches = others = stack = 0
    for _, name, operands in loop:
        to_memory = operands.endswith(")")
        if name.startswith("prefetch"):
            prefetches += 1
        elif name.startswith("v") and "(" in operands:
            stack += "(%rsp" in operands or "(%rbp" in operands
            adds += name.startswith("vfmadd")
            loads += not to_memory
            stores += to_memory
        elif name.startswith("vfmadd"):
            adds += 1
        else:
            others += 1
    return Counts(*(-(-n // steps) for n in (adds, loads, stores, prefetches, others, stack)))


def measure(build: Path) -> dict[Tile, Counts]:
    """All tiles of BOUNDS whose instruction set was built."""
    found = {}
    for tile in BOUNDS:
        isa, dtype, rows, registers = tile
        path = build / f"CMakeFiles/fastnn_{isa}.dir/csrc/cpu/kernels/gemm.cpp.o"
        if not path.exists():
            continue
        command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        name = f"tile<{dtype}, {rows}, {registers}, false>("
        bodies = [body for function, body in functions(text).items() if name in function]
        found[tile] = count(inner_loop(bodies[0]) if bodies else [], tile)
    return found


def faults(found: dict[Tile, Counts]) -> list[str]:
    """What is not as the tiles are meant, a sentence each."""
    lines = []
    for tile, counts in found.items():
        isa, dtype, rows, registers = tile
        name = f"{isa} {dtype} {rows}x{registers}"
        if counts.multiply_adds != rows * registers:
            lines.append(f"{name}: {counts.multiply_adds} multiply-adds in a step, not {rows * registers}")
        elif counts.stack or counts.loads != rows + registers:
            lines.append(f"{name}: {counts.loads} loads in a step, {counts.stack} of the stack")
        elif counts.rest > BOUNDS[tile]:
            lines.append(f"{name}: {counts.rest} other instructions in a step, more than {BOUNDS[tile]}")
    return lines


def table(found: dict[Tile, Counts]) -> str:
    """As it stands in HACKING.md."""
    lines = [
        "| tile | multiply-adds | loads | stores | prefetches | other | of the stack |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (isa, dtype, rows, registers), counts in found.items():
        cells = [f"{isa} {dtype}, {rows} x {registers} registers", *map(str, dataclasses.astuple(counts))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail where a bound is broken")
    options = parser.parse_args()
    builds = sorted(path for path in ROOT.glob("build/torch-*") if path.is_dir())
    found = measure(builds[-1]) if builds else {}
    if not found:
        print("gemm: no x86 kernels are built" + (", nothing to check" if options.check else ""))
        return 0
    wrong = faults(found)
    print(
        "\n".join(
            [table(found), *wrong]
            if not options.check
            else [*wrong, f"gemm: {len(found)} tiles, {len(wrong)} faults"]
        )
    )
    return int(options.check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
