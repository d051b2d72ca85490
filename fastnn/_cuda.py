"""Loads the CUDA kernels, a library apart, where torch has CUDA. Importing fastnn never fails for their lack."""

from pathlib import Path

import torch

from fastnn import _build_info


def _load() -> str:
    """Load the library; return "" or the reason why there is none."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    library = Path(__file__).with_name("libfastnn_cuda.so")
    if not library.exists():
        return f"fastnn was built without CUDA kernels: {_build_info.cuda_reason}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library.name} does not load: {error}"
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    return ""


reason = _load()


def available() -> bool:
    """Whether fastnn's CUDA kernels can run here."""
    return not reason
