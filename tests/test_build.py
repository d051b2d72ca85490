"""What was built and how it loads: one OpenMP runtime, the right torch, denormal numbers kept."""

import os
import re
import subprocess
import sys

import pytest
import torch

import fastnn
from fastnn import _build_check, _build_info


def python(code, **environment):
    """Output of `python -c code`, outside the source tree's own state."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_openmp_runtime_is_mapped():
    work = "import torch, fastnn; fastnn.functional.relu(torch.randn(1 << 20))"
    code = f"{work}; print(open('/proc/self/maps').read())"
    runtimes = set(re.findall(r"(/\S*lib(?:gomp|iomp|omp)\S*\.so\S*)", python(code)))
    assert len(runtimes) == 1, runtimes


def test_import_starts_no_threads():
    code = "import fastnn; print(open('/proc/self/status').read())"
    only_torch = code.replace("fastnn", "torch")
    threads = [int(re.search(r"Threads:\s+(\d+)", python(c))[1]) for c in (only_torch, code)]
    assert threads[1] == threads[0]


def test_another_minor_version_of_torch_is_refused(monkeypatch):
    monkeypatch.setattr(_build_info, "torch_version", "1.13.1+cpu")
    with pytest.raises(ImportError, match=r"built for torch 1\.13 .*rebuild"):
        _build_check.check_build()


def test_build_info_describes_the_build():
    assert _build_info.torch_version == torch.__version__
    assert "portable" in _build_info.isas
    assert set(fastnn.info()["cpu capabilities here"]) <= set(_build_info.isas)
    assert bool(_build_info.cuda_reason) == (_build_info.cuda_architectures == [])


def test_no_flush_to_zero():
    """Denormal numbers stay, in every thread: no part is linked with -ffast-math, whose start-up file flushes them."""
    code = (
        "import torch, fastnn; fastnn.Linear(64, 64)(torch.ones(64, 64));"
        "x = torch.full((1_000_000,), 1e-40); y = fastnn.functional.relu(x);"
        "print((x * 1 != 0).all().item(), (y != 0).all().item())"
    )
    assert python(code) == "True True"
