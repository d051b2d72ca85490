"""Refuses a torch that the compiled part was not built for, in one sentence."""

import torch


def check_build() -> None:
    """Raise ImportError unless the running torch has the major.minor that ``_C`` was built against."""
    try:
        from fastnn import _build_info
    except ImportError:
        raise ImportError(
            "fastnn is not built: run `pip install --no-build-isolation .` or `make build` in its source tree"
        ) from None
    built, running = (v.split("+")[0].split(".")[:2] for v in (_build_info.torch_version, torch.__version__))
    if built != running:
        raise ImportError(
            f"this fastnn was built for torch {'.'.join(built)} and can't run with torch {torch.__version__}: "
            "rebuild it with `pip install --no-build-isolation .`"
        )
