"""What this installation can do here: versions, instruction set, CUDA, kernels."""

import platform
import sys
from typing import Any

import torch

from fastnn import _C, _build_info, _cuda
from fastnn.version import __version__

DTYPES = ("float32", "float64", "bfloat16", "float16")


def info() -> dict[str, Any]:
    """A dictionary with versions, the CPU capability and why, CUDA or why not, and a table of ops.

    ``ops`` maps an op to ``{device: {dtype: "kernel" or "torch"}}``.
    """
    ops = {}
    for name, _, on_cpu, on_cuda in _C.op_table():
        cpu = {d: "kernel" if d in on_cpu else "torch" for d in DTYPES}
        cuda = {d: "kernel" if _cuda.available() and d in on_cuda else "torch" for d in DTYPES}
        ops[name] = {"cpu": cpu, "cuda": cuda}
    return {
        "fastnn": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "built for torch": _build_info.torch_version,
        "compiler": _build_info.compiler,
        "cpu capability": _C.cpu_capability(),
        "cpu capability reason": _C.cpu_capability_reason(),
        "cpu capabilities here": _C.supported_cpu_capabilities(),
        "threads": torch.get_num_threads(),
        "cuda": "available" if _cuda.available() else _cuda.reason,
        "enabled": _C.enabled(),
        "ops": ops,
    }


def format_info(facts: dict[str, Any]) -> str:
    """``info()`` as the text that ``python -m fastnn info`` prints."""
    lines = [f"{key:22} {value}" for key, value in facts.items() if key != "ops"]
    lines += ["", f"{'op':24} {'device':7} " + " ".join(f"{d:9}" for d in DTYPES)]
    for name, devices in sorted(facts["ops"].items()):
        for device, row in devices.items():
            lines.append(f"{name:24} {device:7} " + " ".join(f"{row[d]:9}" for d in DTYPES).rstrip())
    return "\n".join(lines)
