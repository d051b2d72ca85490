"""Fixtures: the case, the CPU capability under test, seeds, threads, strict mode."""

import contextlib
import math
import os
import zlib

import pytest
import torch

import fastnn

pytest.register_assert_rewrite("support")

# `make test-emulated`: the CUDA kernels, run by the emulator of tests/cuda_emulator, in the place of the CPU's.
EMULATED = os.environ.get("FASTNN_EMULATED", "")
NOT_EMULATED = {
    "test_threads": "the number of CPU threads",
    "test_winograd_switch": "an algorithm of the CPU's",
    "test_benchmark": "algorithms of the CPU's",
    "test_benchmark_default_is_first": "algorithms of the CPU's",
    "test_benchmark_obeys_the_other_switch": "algorithms of the CPU's",
    "test_benchmark_measures_anew_for_another_kind": "algorithms of the CPU's",
    "test_benchmark_in_several_threads": "algorithms of the CPU's",
}
if EMULATED:
    torch.ops.load_library(EMULATED)
    torch.backends.cudnn.allow_tf32 = False  # to be compared with the CPU's float32

RANK = ("portable", "avx2", "avx512")
CAPABILITIES = sorted(fastnn._C.supported_cpu_capabilities(), key=RANK.index, reverse=True)
START = fastnn._C.cpu_capability()
if EMULATED:  # no instruction sets
    CAPABILITIES = [START]
THREADS = torch.get_num_threads()


def _cases(metafunc):
    """The list `cases` that stands on the test function, or `<name>_cases` of its class (see support.Family)."""
    found = getattr(metafunc.function, "cases", None)
    if found is None:
        name = metafunc.function.__name__.removeprefix("test_")
        found = getattr(metafunc.cls, f"{name}_cases", metafunc.cls.parity_cases)
    return [case for case in found if case.in_this_torch and (not EMULATED or _is_small(case))]


def _is_small(case):
    """Some 10 ns an element and 0.1 us a barrier: a thread of the emulator is no thread of a GPU."""
    return math.prod(case.shape) <= 20_000


def pytest_collection_modifyitems(config, items):
    """Emulated, without the tests of what CUDA kernels don't have."""
    if EMULATED:
        left_out = [item for item in items if getattr(item, "originalname", item.name) in NOT_EMULATED]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_generate_tests(metafunc):
    """`case` runs over the test's list; `capability` over all that the machine has.

    Under the lesser capabilities every third case is enough.
    """
    marks = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    own = {name for names in marks for name in (names.split(",") if isinstance(names, str) else names)}
    wants_case, wants_capability = (n in set(metafunc.fixturenames) - own for n in ("case", "capability"))
    if wants_case and wants_capability:
        pairs = []
        for capability in CAPABILITIES:
            cases = _cases(metafunc)
            pairs += [(c, capability) for c in (cases if capability == CAPABILITIES[0] else cases[::3])]
        ids = [f"{case.name}-{capability}" for case, capability in pairs]
        metafunc.parametrize(("case", "capability"), pairs, ids=ids, indirect=["capability"])
    elif wants_case:
        metafunc.parametrize("case", _cases(metafunc), ids=lambda case: case.name)
    elif wants_capability:
        metafunc.parametrize("capability", CAPABILITIES, indirect=True)


@pytest.fixture
def capability(request):
    """The instruction set that the test runs under."""
    fastnn._C.set_cpu_capability(request.param)
    yield request.param
    fastnn._C.set_cpu_capability(START)


@pytest.fixture
def strict():
    """Inside the test a call that would fall back to torch's op raises."""
    with fastnn.strict():
        yield


@pytest.fixture(autouse=True)
def guard(request):
    """Every test starts from its own seed, and leaves threads, default dtype and grad mode as they were."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
    yield
    torch.set_num_threads(THREADS)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.fixture
def threads():
    """`with threads(n):` limits torch and fastnn to n threads."""

    @contextlib.contextmanager
    def limit(n):
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return limit
