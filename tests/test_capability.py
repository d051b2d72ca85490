"""The instruction set: chosen, forced, proved."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

import fastnn

NAMES = fastnn._C.supported_cpu_capabilities()


def python(code, **environment):
    """Standard output of the code in a fresh process."""
    env = {**os.environ, **environment}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_portable_is_always_there():
    assert "portable" in NAMES and fastnn._C.cpu_capability() in NAMES


def test_the_best_one_is_chosen():
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    best = "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else "portable"
    code = "import fastnn; print(fastnn._C.cpu_capability(), '|', fastnn._C.cpu_capability_reason())"
    assert python(code, FASTNN_CPU_CAPABILITY="").startswith(best)


@pytest.mark.parametrize("name", NAMES)
def test_environment_forces_one(name):
    code = (
        "import torch, fastnn;"
        "y = fastnn.Conv2d(2, 3, 3)(torch.ones(1, 2, 5, 5));"
        "print(fastnn._C.cpu_capability(), y.shape[1], fastnn.info()['cpu capability'])"
    )
    assert python(code, FASTNN_CPU_CAPABILITY=name) == f"{name} 3 {name}"


def test_environment_with_an_unknown_name():
    code = "import fastnn; print(fastnn._C.cpu_capability(), fastnn._C.cpu_capability_reason())"
    text = python(code, FASTNN_CPU_CAPABILITY="sse9")
    assert text.split()[0] in NAMES and "FASTNN_CPU_CAPABILITY" in text


def test_set_refuses_unknown_names():
    with pytest.raises(ValueError, match="sse9"):
        fastnn._C.set_cpu_capability("sse9")


def test_another_one_really_runs(capability):
    """Instruction sets round differently: long float32 sums tell which one ran. Each repeats its own bits."""
    assert fastnn._C.cpu_capability() == capability == fastnn.info()["cpu capability"]
    x = torch.randn(33, 4099, generator=torch.Generator().manual_seed(0))
    w = torch.randn(65, 4099, generator=torch.Generator().manual_seed(1))
    first = fastnn.functional.linear(x, w)
    assert torch.equal(fastnn.functional.linear(x, w), first)
    fastnn._C.set_cpu_capability("portable")
    other = fastnn.functional.linear(x, w)
    torch.testing.assert_close(first, other, rtol=1e-3, atol=1e-3)
    # Portable code has 16-byte vectors and no fused multiply-add, unless it is what runs already.
    assert torch.equal(first, other) == (capability == "portable")


def test_threads_are_torchs():
    """torch.set_num_threads rules fastnn too: with one thread a large call starts no team."""
    code = (
        "import os, torch; torch.set_num_threads(1); import fastnn;"
        "fastnn.Conv2d(8, 8, 3)(torch.ones(4, 8, 64, 64)).sum().item();"
        "print(len(os.listdir('/proc/self/task')))"
    )
    assert int(python(code)) <= 2
