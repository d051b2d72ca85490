"""fastnn.memory: retained memory and its undoing, in processes of their own; `bench --memory`."""

import json
import os
import subprocess
import sys

import pytest

from fastnn import memory
from fastnn.__main__ import main
from fastnn.bench import memory as bench_memory
from fastnn.bench import results
from fastnn.testing.cases import Case

needs_glibc = pytest.mark.skipif(memory.why_not() is not None, reason=str(memory.why_not()))

_PRELUDE = """
import pathlib, resource, torch, fastnn
from fastnn import memory

PAGES = 64 << 20 >> 12
x = torch.randn(16 << 20)

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def faults(f, calls=5):
    for _ in range(12):  # the heap grows by a gap for each of the first few
        f(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        f(x)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls / PAGES
"""


def run(code, **environment):
    """Output of the code after the prelude; a failed assertion fails the test."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PRELUDE + code],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_glibc
@pytest.mark.parametrize("call", ["memory.retain()", "memory.retain(huge_pages=True)"])
def test_large_tensors_stop_faulting(call):
    run(
        f"""
for f in (torch.relu, fastnn.functional.relu):
    assert faults(f) > 0.9, "no tax on this system to begin with"
{call}
for f in (torch.relu, fastnn.functional.relu):
    assert faults(f) < 0.1, f
"""
    )


@needs_glibc
def test_release_gives_memory_back():
    run(
        """
memory.retain()
before = resident()
del (y := [torch.relu(x) for _ in range(4)])[:]
assert resident() - before > 128 << 20, "freed memory should have stayed"
memory.release()
assert resident() - before < 64 << 20 and not memory.retained()
memory.release()
"""
    )


@needs_glibc
def test_the_last_handle_undoes():
    run(
        """
with memory.retain() as outer:
    inner = memory.retain(huge_pages=True)
    inner.release(), inner.release()
    assert memory.retained()
assert not memory.retained()
a, b = memory.retain(), memory.retain()
memory.release()
assert not memory.retained()
c = memory.retain()
a.release(), b.release()  # undone already: not c's business
assert memory.retained()
c.release()
assert not memory.retained()
"""
    )


@needs_glibc
def test_values_and_gradients_do_not_care():
    run(
        """
def step():
    torch.manual_seed(0)
    model = fastnn.Sequential(fastnn.Conv2d(3, 8, 3), fastnn.BatchNorm2d(8), fastnn.ReLU(), fastnn.MaxPool2d(2))
    model(torch.randn(8, 3, 256, 256)).square().sum().backward()
    return [p.grad for p in model.parameters()]

before = step()
with memory.retain():
    during = step()
assert all(map(torch.equal, before, during)) and all(map(torch.equal, before, step()))
"""
    )


def test_another_malloc_is_a_sentence(monkeypatch):
    monkeypatch.setattr(memory, "why_not", lambda: "the C library is not glibc")
    with pytest.warns(
        RuntimeWarning, match=r"^fastnn\.memory\.retain has no effect: the C library is not glibc$"
    ):
        handle = memory.retain()
    assert not memory.retained()
    with handle:
        pass
    memory.release()


@needs_glibc
def test_a_preloaded_malloc_is_noticed(tmp_path):
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(
        "#include <stddef.h>\nvoid* __libc_malloc(size_t);\nvoid* malloc(size_t n) { return __libc_malloc(n); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    code = 'assert memory.why_not() == "another malloc than glibc\'s is loaded", memory.why_not()'
    run(code, LD_PRELOAD=str(library))


@needs_glibc
def test_step_memory_is_what_the_tensors_take():
    """ReLU: output, its gradient, the input's; max pooling of torch keeps 8-byte positions, ours 1-byte codes."""
    relu, pool = (
        Case("extra", layer, args, shape=(4, 16, 128, 128))
        for layer, args in (("ReLU", ()), ("MaxPool2d", (2,)))
    )
    size = 4 * 4 * 16 * 128 * 128
    for side in bench_memory.SIDES:
        found = bench_memory.measure_apart(relu, side, 2)
        assert found["peak"] == pytest.approx(3 * size, rel=0.05)
        assert found["kept"] == pytest.approx(size, rel=0.05)
    row = bench_memory.row_of(pool, 2)
    assert row["status"] == "ok" and row["torch_kept"] == pytest.approx(size * 3 / 4, rel=0.05)
    assert row["fastnn_kept"] == pytest.approx(size * 5 / 16, rel=0.05)


def test_a_case_that_fails_is_an_error_row():
    row = bench_memory.row_of(Case("extra", "MaxPool2d", (9,), shape=(1, 1, 4, 4)), 1)
    assert row["status"] == "ERROR" and row["note"].startswith("torch: RuntimeError")
    assert "ERROR" in bench_memory.cells(row)[-1]
    assert "| extra | 1 | - | - | 0 |" in bench_memory.markdown(
        {"machine": results.machine() | {"threads": 1}, "rows": [row]}
    )


def test_bench_memory_writes_its_files(tmp_path, capsys):
    files = tmp_path / "new" / "m.json", tmp_path / "new" / "m.csv"
    arguments = [
        "bench",
        "--memory",
        "--only",
        "bn_relu_pool_dropout",
        "--json",
        str(files[0]),
        "--csv",
        str(files[1]),
    ]
    assert main(arguments) == 0
    assert "bn_relu_pool_dropout() 20x48x60x60" in capsys.readouterr().out
    result = json.loads(files[0].read_text())
    assert result["rows"][0]["kept_share"] < 0.8 and "bn_relu_pool_dropout" in files[1].read_text()
    assert main(["bench", "--memory", "--only", "no such case"]) == 2
