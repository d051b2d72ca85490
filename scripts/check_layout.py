"""Holds the layout rules of HACKING.md: who may include what, file lengths, one stem in every layer."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TORCH_INCLUDE = re.compile(r'#\s*include\s*[<"](torch/|ATen/|c10/|pybind11/|Python\.h)')
CUDA_CONDITION = re.compile(r"#\s*(if|ifdef|ifndef|elif)\b.*CUDA")
SYSTEM_INCLUDE = re.compile(r"#\s*include\s*<([^>]+)>")

# tests/cuda_emulator: what registers emulated kernels.
TORCH_ALLOWED = ("csrc/ops/", "tests/cuda_emulator/seam/ops/", "tests/cuda_emulator/library.cpp")
# The one place that asks whether nvcc compiles it: what a function for host and device is called.
CUDA_CONDITION_ALLOWED = {"csrc/include/fastnn/scalar_math.h"}
# In files compiled per instruction set: nothing with inline functions that the linker could share.
KERNEL_INCLUDES = {"cstddef", "cstdint", "math.h", "emmintrin.h", "immintrin.h", "arm_neon.h"}

WARN_LINES, FAIL_LINES = 500, 800

OPS_WITHOUT_STEM = {"front", "module", "parameters", "tensors", "torch"}
CPP_TESTS = {"linear": "gemm"}  # linear on the CPU is the matrix core, which is tested by its own name


def files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [Path(name) for name in listed if name and (ROOT / name).is_file()]


def include_faults(path: Path, lines: list[str]) -> Iterator[str]:
    name = path.as_posix()
    if not name.startswith(("csrc/", "tests/cpp/", "tests/cuda_emulator/")):
        return
    per_isa = name.startswith(("csrc/cpu/kernels/", "csrc/cpu/simd/"))
    for number, line in enumerate(lines, 1):
        if TORCH_INCLUDE.search(line) and not name.startswith(TORCH_ALLOWED):
            yield f"{name}:{number}: torch and Python headers belong in csrc/ops only: {line.strip()}"
        if CUDA_CONDITION.search(line) and name not in CUDA_CONDITION_ALLOWED:
            yield f"{name}:{number}: a build without CUDA has no other sources, only fewer: {line.strip()}"
        found = SYSTEM_INCLUDE.search(line)
        if per_isa and found and found[1] not in KERNEL_INCLUDES:
            yield f"{name}:{number}: <{found[1]}> in a file compiled per instruction set"


def stem_faults(present: set[str]) -> Iterator[str]:
    """Each functional/<stem>.py has its layers, and each file of a layer belongs to a stem."""

    def names(folder: str, suffix: str) -> list[str]:
        pattern = re.compile(rf"{folder}/([^/]+)\{suffix}$")
        return [found[1] for name in present if (found := pattern.match(name))]

    # A chain is made of layers: no function of torch.nn.functional stands for it.
    stems = {n for n in names("fastnn/functional", ".py") if not n.startswith("_")} | {"chain"}

    def belongs(name: str) -> bool:
        return any(name == stem or name.startswith(stem + "_") for stem in stems)

    for stem in sorted(stems):
        layers = {
            "contract": [f"csrc/include/fastnn/{stem}.h"],
            "ops": [f"csrc/ops/{stem}.cpp"],
            "CPU side": [f"csrc/cpu/{stem}.cpp", f"csrc/cpu/{stem}/"],
            "modules": [f"fastnn/modules/{stem}.py"],
            "tests": [f"tests/test_{stem}.py"],
            "C++ tests": [f"tests/cpp/test_{CPP_TESTS.get(stem, stem)}"],
        }
        for layer, wanted in layers.items():
            if not any(name.startswith(prefix) for prefix in wanted for name in present):
                yield f"{stem}: {layer} missing: {' or '.join(wanted)}"
    checked = {"csrc/ops": OPS_WITHOUT_STEM, "csrc/ops/cuda": set(), "fastnn/modules": {"__init__", "_base"}}
    for folder, others in checked.items():
        for name in names(folder, ".cpp") + names(folder, ".py"):
            if name not in others and not name.startswith("_") and not belongs(name):
                yield f"{folder}/{name}: belongs to no stem ({', '.join(sorted(stems))})"


def main() -> int:
    faults: list[str] = []
    warnings: list[str] = []
    present = files()
    for path in present:
        if path.suffix not in {".cpp", ".cu", ".cuh", ".h", ".py", ".pyi", ".cmake"}:
            continue
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        faults += include_faults(path, lines)
        if len(lines) > FAIL_LINES:
            faults.append(
                f"{path}: {len(lines)} lines; {FAIL_LINES} at most: split it by direction or algorithm"
            )
        elif len(lines) > WARN_LINES:
            warnings.append(f"{path}: {len(lines)} lines; {WARN_LINES} is comfortable")
    faults += stem_faults({path.as_posix() for path in present})
    for line in warnings:
        print(f"warning: {line}")
    for line in faults:
        print(line)
    print(f"layout: {len(present)} files, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
