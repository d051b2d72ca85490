"""Everything to find out on a GPU machine, in one command and a fixed time; needs the repository and no network.

Stages run one after the other, each in a process of its own with a share of the time; one that fails, hangs or is
cut short leaves what it found and the next begins. The ratio table and the geometric means come last.

  environment  nvidia-smi; versions, the device, whether the kernels load
  build        the extension with its CUDA library, unless they load
  ceilings     bytes per second of a copy, cuBLAS at 8192^3 in bf16, tf32 and fp32
  parity       every op, dtype and layout beside float64; fresh memory holds NaN, two runs give the same bits
  graphs       training steps in a captured graph and on a side stream
  bench        fastnn beside torch, each row with its share of the copy bandwidth
  memcheck     compute-sanitizer over a reduced list, where it is installed
  racecheck    the same for shared memory
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/gpu.json"
NO_DEVICE = 3  # what a stage exits with where no device is visible

Row = dict[str, Any]


@dataclasses.dataclass
class Found:
    """What a stage left. ok: it ended by itself and no row of it is a fault."""

    stage: str
    seconds: float = 0
    note: str = ""
    rows: list[Row] = dataclasses.field(default_factory=list)

    @property
    def faults(self) -> list[Row]:
        return [row for row in self.rows if row.get("status") not in ("ok", "fallback", "cut")]

    @property
    def ok(self) -> bool:
        return not self.note and not self.faults


def run_stage(stage: str, command: list[str], seconds: float, to: Path) -> Found:
    """Runs the command, at most 15 seconds longer than it was told, and reads the rows that it wrote."""
    found = Found(stage)
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, timeout=seconds + 15, check=False)
        if done.returncode == NO_DEVICE:
            found.note = "no CUDA device is visible"
        elif done.returncode != 0:
            found.note = f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        found.note = f"killed after {seconds + 15:.0f} s"
    except OSError as error:
        found.note = str(error)
    found.seconds = time.monotonic() - start
    if to.exists():
        for line in to.read_text(encoding="utf-8").splitlines():
            try:
                found.rows.append(json.loads(line))
            except ValueError:  # the line that was being written when the process ended
                found.note = found.note or "its last line is cut off"
    return found


def module_stage(
    stage: str, name: str | None = None, watch: tuple[str, ...] = ()
) -> Callable[[float, Path], Found]:
    """A stage of fastnn.testing.gpu, under the command `watch`."""

    def run(seconds: float, to: Path) -> Found:
        command = [*watch, sys.executable, "-m", "fastnn.testing.gpu", name or stage]
        return run_stage(stage, [*command, "--seconds", f"{seconds:.0f}", "--to", str(to)], seconds, to)

    return run


# Without fastnn, which may have to be built first.
_ENVIRONMENT = """
import json, sys, torch
if not torch.cuda.is_available():
    raise SystemExit(int(sys.argv[2]))
p = torch.cuda.get_device_properties(0)
facts = dict(device=p.name, memory=p.total_memory, multiprocessors=p.multi_processor_count,
             capability=f"{p.major}.{p.minor}", torch=torch.__version__, cuda=torch.version.cuda,
             cudnn=torch.backends.cudnn.version(), python=sys.version.split()[0], status="ok")
print(facts)
open(sys.argv[1], "w").write(json.dumps(facts))
"""
_LOADED = "from fastnn import _cuda; print('fastnn:', _cuda.reason or 'loaded'); raise SystemExit(not _cuda.available())"


def environment(seconds: float, to: Path) -> Found:
    if shutil.which("nvidia-smi") is None:
        print("gpu: nvidia-smi is not on PATH")
    else:
        subprocess.run(["nvidia-smi"], timeout=30, check=False)
    return run_stage(
        "environment", [sys.executable, "-c", _ENVIRONMENT, str(to), str(NO_DEVICE)], seconds, to
    )


def build(seconds: float, to: Path) -> Found:
    loaded = [sys.executable, "-c", _LOADED]
    if subprocess.run(loaded, cwd=ROOT, capture_output=True, check=False).returncode == 0:
        return Found("build", rows=[{"status": "ok", "what": "loads as it is"}])
    os.environ["CMAKE_ARGS"] = f"{os.environ.get('CMAKE_ARGS', '')} -DFASTNN_CUDA=ON".strip()
    found = run_stage("build", [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], seconds, to)
    if not found.note and subprocess.run(loaded, cwd=ROOT, check=False).returncode != 0:
        found.note = "built, but the CUDA kernels don't load"
    return found


def sanitizer(tool: str) -> Callable[[float, Path], Found]:
    def run(seconds: float, to: Path) -> Found:
        if shutil.which("compute-sanitizer") is None:
            return Found(tool, note="compute-sanitizer is not on PATH")
        # Without torch's cache of blocks every tensor ends where its memory ends.
        os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        watch = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20")
        try:
            return module_stage(tool, "sanitized", watch)(seconds, to)
        finally:
            del os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"]

    return run


# Name, share of the time, what runs. Shares are of the whole; what a stage does not use goes to the later ones.
STAGES: dict[str, tuple[float, Callable[[float, Path], Found]]] = {
    "environment": (0.06, environment),
    "build": (0.35, build),
    "ceilings": (0.05, module_stage("ceilings")),
    "parity": (0.2, module_stage("parity")),
    "graphs": (0.06, module_stage("graphs")),
    "bench": (0.4, module_stage("bench")),
    "memcheck": (0.15, sanitizer("memcheck")),
    "racecheck": (0.15, sanitizer("racecheck")),
}


def run_all(chosen: list[str], seconds: float, folder: Path) -> list[Found]:
    """The chosen stages in order. After one has seen no device, those that need one are left out."""
    end = time.monotonic() + seconds
    results: list[Found] = []
    for stage in chosen:
        share, run = STAGES[stage]
        left = end - time.monotonic() - 15
        if any("no CUDA device" in found.note for found in results):
            results.append(Found(stage, note="left out: no CUDA device is visible"))
        elif left < 5:
            results.append(Found(stage, note="left out: the time was over"))
        else:
            print(f"\n== {stage} ({left:.0f} s left)", flush=True)
            try:
                results.append(run(min(left, max(30.0, share * seconds)), folder / f"{stage}.jsonl"))
            except Exception as error:  # a fault of this script is no reason to lose the other stages
                results.append(Found(stage, note=f"{type(error).__name__}: {error}"))
    return results


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def report(results: list[Found]) -> str:
    """The stages, the faults, then the ratio table and the geometric means per family."""
    lines = ["", f"{'stage':12} {'seconds':>7} {'rows':>5} {'faults':>6}  note"]
    for found in results:
        lines.append(
            f"{found.stage:12} {found.seconds:7.0f} {len(found.rows):5} {len(found.faults):6}  {found.note}".rstrip()
        )
    for found in results:
        lines += [f"{found.stage}: {json.dumps(row)}" for row in found.faults[:20]]
    bench = [row for found in results if found.stage == "bench" for row in found.rows if row.get("ratio")]
    if not bench:
        return "\n".join([*lines, "", "no timings"])
    lines += [
        "",
        f"{'case':58} {'dtype':9} {'layout':6} {'pass':8} {'ours ms':>8} {'torch':>8} {'ratio':>6} {'limit':>6}",
    ]
    for row in bench:
        layout, passed = (
            "last" if row["channels_last"] else "first",
            row["pass"].replace("forward+backward", "fwd+bwd"),
        )
        limit = "-" if row["of_ceiling"] is None else f"{100 * row['of_ceiling']:.0f}%"
        lines.append(
            f"{row['case'][:58]:58} {row['dtype']:9} {layout:6} {passed:8} {row['fastnn_ms']:8.3f} "
            f"{row['torch_ms']:8.3f} {row['ratio']:5.2f}x {limit:>6}{'' if row['ratio'] >= 0.995 else '  loss'}"
        )
    lines += ["", f"{'family':14} {'rows':>5} {'geomean':>8} {'least':>6} {'losses':>6}"]
    families: dict[str, list[float]] = {}
    for row in bench:
        families.setdefault(row["family"], []).append(row["ratio"])
    for family, ratios in [*families.items(), ("all", [row["ratio"] for row in bench])]:
        losses = sum(ratio < 0.995 for ratio in ratios)
        lines.append(
            f"{family:14} {len(ratios):5} {geometric_mean(ratios):7.2f}x {min(ratios):5.2f}x {losses:6}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9, help="for everything (default: 9)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument(
        "--out", type=Path, help=f"JSON of everything (default, with a device: {RESULT.name})"
    )
    options = parser.parse_args(arguments)
    os.environ["FASTNN_CUDA_PRODUCTS"] = "1"  # linear and convolution are what is to be seen
    with tempfile.TemporaryDirectory() as folder:
        results = run_all([s for s in STAGES if s in options.stages], 60 * options.minutes, Path(folder))
    print(report(results))
    blind = any("no CUDA device" in found.note for found in results)
    out = options.out or (None if blind else RESULT)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        stages = [{**dataclasses.asdict(found), "ok": found.ok} for found in results]
        text = json.dumps({"section": "gpu", "date": time.strftime("%Y-%m-%d"), "stages": stages}, indent=1)
        out.write_text(text + "\n", encoding="utf-8")
    if blind:
        print("\ngpu: no CUDA device is visible; nothing was measured")
    return 0 if all(found.ok for found in results) else 1


if __name__ == "__main__":
    sys.exit(main())
