"""What was built and how it loads: one OpenMP runtime, the right torch, the instruction set asked for."""

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


@pytest.mark.parametrize("wanted", fastnn.info()["cpu capabilities here"])
def test_environment_forces_a_capability(wanted):
    code = "import fastnn; print(fastnn.info()['cpu capability'])"
    assert python(code, FASTNN_CPU_CAPABILITY=wanted) == wanted


def test_an_unknown_capability_is_said():
    code = "import fastnn; print(fastnn.info()['cpu capability reason'])"
    assert "names none" in python(code, FASTNN_CPU_CAPABILITY="mmx")


def test_denormals_are_kept():
    """No part was linked with -ffast-math, whose start-up file flushes them to zero in the whole process."""
    code = "import fastnn, torch; print((torch.tensor([1e-40]) * 1.0).item() > 0, 5e-324 > 0)"
    assert python(code) == "True True"
