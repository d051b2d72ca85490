"""scripts/gpu.py without a GPU: stages stand alone, faults are told, the table and its means are right."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from fastnn.testing import gpu, gpu_cases

SCRIPT = Path(__file__).resolve().parent.parent / "scripts/gpu.py"
spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
script = importlib.util.module_from_spec(spec)
sys.modules["gpu_script"] = script
spec.loader.exec_module(script)

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible")
ROW = {
    "family": "pooling",
    "case": "MaxPool2d(2) 9x9",
    "dtype": "float32",
    "channels_last": False,
    "pass": "forward",
}


def python(code, tmp_path, seconds=5):
    return script.run_stage(
        "some", [sys.executable, "-c", code, str(tmp_path / "rows")], seconds, tmp_path / "rows"
    )


def test_a_stage_that_dies_leaves_its_rows(tmp_path):
    found = python(
        'import sys; open(sys.argv[1], \'w\').write(\'{"status": "ok"}\\n{"sta\'); sys.exit(7)', tmp_path
    )
    assert found.rows == [{"status": "ok"}] and found.note == "exit status 7" and not found.ok


def test_a_stage_that_hangs_is_ended(tmp_path, monkeypatch):
    found = python("import time; time.sleep(60)", tmp_path, seconds=-14)  # and 15 seconds of grace
    assert "killed" in found.note and found.seconds < 10


def test_a_row_that_is_a_fault_fails_the_stage():
    assert script.Found("parity", rows=[{"status": "ok"}, {"status": "fallback"}, {"status": "cut"}]).ok
    assert not script.Found("parity", rows=[{"status": "WRONG"}]).ok


def test_one_stage_does_not_stop_the_next(monkeypatch, tmp_path):
    def breaks(seconds, to):
        raise ValueError("a fault of the stage")

    monkeypatch.setattr(
        script,
        "STAGES",
        {"a": (0.5, breaks), "b": (0.5, lambda seconds, to: script.Found("b", rows=[{"status": "ok"}]))},
    )
    a, b = script.run_all(["a", "b"], 100, tmp_path)
    assert a.note == "ValueError: a fault of the stage" and b.ok
    assert "left out" in script.run_all(["b"], 10, tmp_path)[0].note


def test_the_report_has_ratios_and_means():
    rows = [
        {**ROW, "fastnn_ms": 1.0, "torch_ms": r, "ratio": r, "of_ceiling": 0.5, "status": "ok"}
        for r in (0.5, 8.0)
    ]
    text = script.report([script.Found("parity", note="exit status 1"), script.Found("bench", rows=rows)])
    assert "exit status 1" in text and "loss" in text
    assert text.splitlines()[-1].split() == ["all", "2", "2.00x", "0.50x", "1"]


@without_gpu
def test_says_that_no_device_is_visible(capfd, tmp_path, monkeypatch):
    monkeypatch.setitem(
        script.STAGES, "build", (0.1, lambda seconds, to: script.Found("build"))
    )  # never from a test
    assert script.main(["--minutes", "2", "--out", str(tmp_path / "gpu.json")]) == 1
    assert "no CUDA device is visible" in capfd.readouterr().out
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [stage["stage"] for stage in result["stages"]] == list(script.STAGES)
    assert not any(stage["ok"] for stage in result["stages"])
    assert all(stage["note"] for stage in result["stages"])
    assert gpu.main(["bench", "--to", str(tmp_path / "bench")]) == script.NO_DEVICE


def test_refuses_unknown_stages():
    with pytest.raises(SystemExit):
        script.main(["--stages", "nothing"])


def test_cases_are_the_shared_ones():
    smoke, large = gpu_cases.smoke_cases(), gpu_cases.large_cases()
    assert {case.family for case in smoke} == set(gpu_cases.FAMILIES) == {case.family for case in large}
    assert all(torch.Size(case.shape).numel() >= gpu_cases.LARGE for case in large)
    assert len({case.name for case in large}) == len(large)
