"""scripts/gemm_instructions.py: the loop that it finds in a disassembly, and what its check calls a fault."""

import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "scripts/gemm_instructions.py"
spec = importlib.util.spec_from_file_location("gemm_instructions", SCRIPT)
gemm_instructions = importlib.util.module_from_spec(spec)
sys.modules["gemm_instructions"] = gemm_instructions
spec.loader.exec_module(gemm_instructions)

TEXT = """\
0000000000000100 <void (anonymous namespace)::tile<float, 2, 1, false>(Args const&)>:
 100:\tvmovups (%rdi),%zmm0
 104:\tje     140 <end>
 108:\tvmovups (%rsi),%zmm1
 10c:\tprefetcht0 (%rsi,%r15,1)
 110:\tvbroadcastss (%r8),%zmm2
 114:\tvfmadd231ps %zmm1,%zmm2,%zmm3
 118:\tvfmadd231ps (%r8,%rax,4){1to16},%zmm1,%zmm4
 11c:\tadd    $0x1,%r13
 120:\tcmp    %r13,-0x8(%rsp)
 124:\tjne    108 <loop>
 128:\tvmovups %zmm3,(%rdx)
"""
TILE = ("avx512", "float", 2, 1)


def counts(text=TEXT):
    (body,) = gemm_instructions.functions(text).values()
    return gemm_instructions.count(gemm_instructions.inner_loop(body), TILE)


def test_one_step(monkeypatch):
    found = counts()
    assert found == gemm_instructions.Counts(2, 3, 0, 1, 3, 0)
    monkeypatch.setitem(gemm_instructions.BOUNDS, TILE, 4)
    assert gemm_instructions.faults({TILE: found}) == []
    monkeypatch.setitem(gemm_instructions.BOUNDS, TILE, 3)
    assert "4 other instructions" in gemm_instructions.faults({TILE: found})[0]


def test_a_spill_is_a_fault():
    found = counts(TEXT.replace(" 11c:", " 11a:\tvmovups %zmm4,0x40(%rsp)\n 11c:"))
    assert (found.stores, found.stack) == (1, 1)
    assert "1 of the stack" in gemm_instructions.faults({TILE: found})[0]


def test_no_loop_is_a_fault():
    found = counts(TEXT.replace("jne", "nop"))
    assert "0 multiply-adds" in gemm_instructions.faults({TILE: found})[0]


def test_the_build():
    """The kernels of this build keep the bounds."""
    builds = sorted(gemm_instructions.ROOT.glob("build/torch-*"))
    assert gemm_instructions.faults(gemm_instructions.measure(builds[-1]) if builds else {}) == []
