"""scripts/ptxas_table.py: what it reads of `ptxas -v`, and what its check calls a fault."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts/ptxas_table.py"
spec = importlib.util.spec_from_file_location("ptxas_table", SCRIPT)
ptxas_table = importlib.util.module_from_spec(spec)
sys.modules["ptxas_table"] = ptxas_table
spec.loader.exec_module(ptxas_table)

MESSAGES = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3onev' for 'sm_90'
ptxas info    : Function properties for _Z3onev
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 20.426 ms
ptxas info    : Compiling entry function '_Z3twov' for 'sm_90'
ptxas info    : Function properties for _Z3twov
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers, 8 bytes cumulative stack size, 392 bytes cmem[0]
"""


def usages(registers=40, **other):
    return {a: ptxas_table.Usage(registers, 0, **other) for a in ptxas_table.ARCHITECTURES}


def test_reads_registers_shared_memory_frames_and_spills():
    assert ptxas_table.parse(MESSAGES) == {
        "_Z3onev": ptxas_table.Usage(40, 1024),
        "_Z3twov": ptxas_table.Usage(16, 0, stack=8, spilled=16),
    }


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("void fastnn::cuda::(anonymous namespace)::map<4, float>(float*, long)", "map<4, float>"),
        ("void fastnn::cuda::(anonymous namespace)::f<(bool)1, (int)2, double>(fastnn::X<int>)", "f<1, 2, double>"),
        ("void fastnn::cuda::e<float, fastnn::cuda::(anonymous namespace)::B<fastnn::activations::Elu> >(int)",
         "e<float, B<Elu>>"),
        ("fastnn::cuda::(anonymous namespace)::write(fastnn::cuda::State, unsigned long*)", "write"),
    ],
)  # fmt: skip
def test_names_are_short(demangled, name):
    assert ptxas_table.readable(demangled) == name


def test_a_spill_and_a_stack_frame_are_faults():
    found = {("a", "good"): usages(), ("a", "spills"): usages(spilled=4), ("a", "frame"): usages(stack=8)}
    faults = ptxas_table.faults_of(found)
    assert len(faults) == 4 and not any("good" in fault for fault in faults)


def test_the_table_is_held_against_what_is_compiled():
    table = {("a", "same"): usages(), ("a", "grown"): usages(), ("a", "gone"): usages()}
    found = {("a", "same"): usages(41), ("a", "grown"): usages(60), ("a", "new"): usages()}
    faults = ptxas_table.differences(found, table, grown=0.15)
    assert [fault.split()[1].rstrip(":") for fault in faults] == ["gone", "grown", "grown", "new"]


def test_the_table_survives_its_file():
    found = {("a", "f<1, float>"): usages(), ("b", "g"): usages(32)}
    assert ptxas_table.from_csv(ptxas_table.to_csv(found)) == found
    assert "2 kernels" in ptxas_table.page(found)


def test_the_committed_table_is_whole():
    table = ptxas_table.from_csv(ptxas_table.TABLE.read_text())
    files = {path.stem for path in (ptxas_table.ROOT / ptxas_table.KERNELS).rglob("*.cu")}
    assert {Path(file).name for file, _ in table} == files
    assert ptxas_table.PAGE.read_text() == ptxas_table.page(table)
