"""What every CUDA kernel takes of a multiprocessor: docs/ptxas.csv, one line per kernel, and docs/ptxas.md, its summary.

Compiles csrc/cuda for each architecture (no GPU is needed), reads what `ptxas -v` says, and writes the two files, or
with --check compares: a spill, a stack frame, a kernel without a line, and registers that grew by more than --grown
are faults. Registers below that vary with the compiler's version and are no fault.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = "csrc/cuda"
TABLE, PAGE = ROOT / "docs/ptxas.csv", ROOT / "docs/ptxas.md"
ARCHITECTURES = ("80", "90")
# As cmake/cuda.cmake compiles; warnings are not asked for here.
FLAGS = ("-std=c++20", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "-Icsrc", "-Icsrc/include")

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclasses.dataclass(frozen=True)
class Usage:
    """One kernel on one architecture. shared: what is declared; dynamic shared memory is the launch's. Bytes."""

    registers: int
    shared: int
    stack: int = 0
    spilled: int = 0


Kernel = tuple[str, str]  # file without its folder, name
Found = dict[Kernel, dict[str, Usage]]  # by architecture


def parse(text: str) -> dict[str, Usage]:
    """Mangled name to usage from the messages of `ptxas -v`."""
    found: dict[str, Usage] = {}
    name, frame = "", (0, 0, 0)
    for line in text.splitlines():
        if entry := _ENTRY.search(line):
            name, frame = entry[1], (0, 0, 0)
        elif sizes := _FRAME.search(line):
            frame = (int(sizes[1]), int(sizes[2]), int(sizes[3]))
        elif name and (used := _USED.search(line)):
            shared = _SHARED.search(line)
            found[name] = Usage(int(used[1]), int(shared[1]) if shared else 0, frame[0], frame[1] + frame[2])
            name = ""
    return found


def readable(demangled: str) -> str:
    """`void fastnn::cuda::(anonymous namespace)::map<4, float>(float*)` as `map<4, float>`."""
    name = re.sub(r"\(anonymous namespace\)::|fastnn::(cuda::|activations::)?|^void ", "", demangled)
    depth = 0
    for i, letter in enumerate(name):  # the arguments begin at the first parenthesis outside of <>
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return re.sub(r"\((?:bool|int)\)", "", name).replace("> >", ">>")


def demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def compile_one(source: Path, architecture: str) -> tuple[str, str]:
    """The messages of ptxas, and the errors of a failed compilation."""
    target = ["-cubin", "-o", os.devnull, f"-arch=sm_{architecture}", "-Xptxas=-v"]
    done = subprocess.run(
        ["nvcc", *FLAGS, *target, str(source)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stderr, done.stderr if done.returncode else ""


def collect(sources: list[Path], jobs: int) -> tuple[Found, list[str]]:
    """Every kernel of the sources on every architecture, and the faults of the compilations."""
    found: Found = {}
    faults: list[str] = []
    tasks = [(source, architecture) for source in sources for architecture in ARCHITECTURES]
    tasks.sort(key=lambda task: -task[0].stat().st_size)  # the longest first, so that none ends alone
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for (source, architecture), (text, error) in zip(
            tasks, pool.map(lambda task: compile_one(*task), tasks), strict=True
        ):
            if error:
                faults.append(f"{source.name} for sm_{architecture} does not compile:\n{error}")
                continue
            usages = parse(text)
            file = source.relative_to(ROOT / KERNELS).with_suffix("").as_posix()
            for name, usage in zip(demangle(list(usages)), usages.values(), strict=True):
                found.setdefault((file, readable(name)), {})[architecture] = usage
    return found, faults


def faults_of(found: Found) -> list[str]:
    """Kernels that keep anything in memory that belongs in registers."""
    return [
        f"{file}: {name} on sm_{architecture}: {u.spilled} bytes spilled, a stack frame of {u.stack} bytes"
        for (file, name), usages in sorted(found.items())
        for architecture, u in sorted(usages.items())
        if u.spilled or u.stack
    ]


def differences(found: Found, table: Found, grown: float) -> list[str]:
    """What the table does not know, knows in vain, or knows with clearly fewer registers."""
    faults = []
    for kernel in sorted(found.keys() | table.keys()):
        name = ": ".join(kernel)
        if kernel not in table:
            faults.append(f"{name}: not in {TABLE.name}")
        elif kernel not in found:
            faults.append(f"{name}: in {TABLE.name}, but no kernel of this name is compiled")
        else:
            for architecture, now in sorted(found[kernel].items()):
                before = table[kernel].get(architecture)
                if before is None or now.registers > before.registers * (1 + grown) + 8:
                    old = before.registers if before else "no"
                    faults.append(
                        f"{name} on sm_{architecture}: {now.registers} registers, {old} in the table"
                    )
    return faults


def to_csv(found: Found) -> str:
    """One line per kernel: what it uses on each architecture."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["file", "kernel", *(f"{what} sm_{a}" for a in ARCHITECTURES for what in ("registers", "shared"))]
    )
    for (file, name), usages in sorted(found.items()):
        numbers = [usages[a] for a in ARCHITECTURES]
        writer.writerow([file, name, *(n for u in numbers for n in (u.registers, u.shared))])
    return out.getvalue()


def from_csv(text: str) -> Found:
    return {
        (row["file"], row["kernel"]): {
            a: Usage(int(row[f"registers sm_{a}"]), int(row[f"shared sm_{a}"])) for a in ARCHITECTURES
        }
        for row in csv.DictReader(io.StringIO(text))
    }


def page(found: Found) -> str:
    """The summary: a line per file, and the kernels with the most registers."""

    def most(file: str, architecture: str, what: str) -> int:
        return max(getattr(u[architecture], what) for (f, _), u in found.items() if f == file)

    def line(cells: list[object]) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    heads = [f"{what}, sm_{a}" for what in ("registers", "shared bytes") for a in ARCHITECTURES]
    widest = sorted(found, key=lambda k: (-max(u.registers for u in found[k].values()), k))[:20]
    files = sorted({file for file, _ in found})
    return "\n".join([
        "# What the CUDA kernels use", "",
        f"From `ptxas -v`, written by `python scripts/ptxas_table.py`; all {len(found)} kernels, one a line, are in "
        f"[{TABLE.name}]({TABLE.name}).",
        "None spills registers, none has a stack frame; CI holds both, and that registers do not grow unseen.", "",
        "The most that any kernel of a file uses:", "",
        line(["file", "kernels", *heads]), "|---|" + "--:|" * (1 + len(heads)),
        *(line([f"`{file}.cu`", sum(f == file for f, _ in found),
                *(most(file, a, what) for what in ("registers", "shared") for a in ARCHITECTURES)]) for file in files),
        "", "The kernels with the most registers:", "",
        line(["kernel", *(f"sm_{a}" for a in ARCHITECTURES)]), "|---|" + "--:|" * len(ARCHITECTURES),
        *(line([f"`{file}: {name}`", *(found[file, name][a].registers for a in ARCHITECTURES)])
          for file, name in widest), "",
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; faults end in exit status 1")
    parser.add_argument("--grown", type=float, default=0.15, help="share by which registers may grow (and 8)")
    parser.add_argument(
        "--only", default="", help="files whose name has this in it; with --check, or to print"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if shutil.which("nvcc") is None:
        print("ptxas table: nvcc is not on PATH")
        return 2
    start = time.monotonic()
    sources = sorted(p for p in (ROOT / KERNELS).rglob("*.cu") if options.only in p.stem)
    found, faults = collect(sources, options.jobs)
    faults += faults_of(found)
    if options.check:
        files = {file for file, _ in found}
        known = from_csv(TABLE.read_text(encoding="utf-8"))
        faults += differences(
            found, {k: v for k, v in known.items() if k[0] in files or not options.only}, options.grown
        )
    elif options.only:
        print(to_csv(found), end="")
    elif not faults:
        TABLE.write_text(to_csv(found), encoding="utf-8")
        PAGE.write_text(page(found), encoding="utf-8")
    for fault in faults:
        print(fault)
    print(
        f"ptxas table: {len(sources)} files, {len(found)} kernels, sm_{' and sm_'.join(ARCHITECTURES)}, "
        f"{len(faults)} faults, {time.monotonic() - start:.0f} s"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
