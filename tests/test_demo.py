"""The demo: both jobs run through on a part of their data, and what the text one says of its text and samples holds."""

import json
import sys

import pytest
import torch

import fastnn
from fastnn.__main__ import main
from fastnn.demo import data, digits, text
from fastnn.demo.main import TASKS

MODELS = {"digits": ("FCNet", "CNN"), "text": ("GRU", "Transformer")}


@pytest.fixture
def part(monkeypatch):
    """Some hundred samples of each job's data; the processes of the sides get them from here."""
    whole = text.text()
    monkeypatch.setattr(text, "text", lambda: whole[: 400 * text.LENGTH])
    monkeypatch.setattr(digits, "split", lambda x, labels, n: data.split(x[:600], labels[:600], 200))


@pytest.mark.parametrize("task", TASKS)
def test_runs(task, part, tmp_path, capsys):
    """All checks hold, fastnn's side without a fallback (its process is strict); the files have what was printed."""
    code = main(
        ["demo", "--task", task, "--quick", "--epochs", "1", "--threads", "1", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "FAILED" not in printed
    found = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "results.png").stat().st_size > 0
    assert found["task"] == task
    assert tuple(found["models"]) == MODELS[task]
    for model in found["models"].values():
        assert model["curves"]["fastnn"] == pytest.approx(model["curves"]["torch"], rel=1e-3)
        assert len(model["torch"][0]["losses"]) == len(model["fastnn"][0]["losses"]) > 3
        assert model["fastnn"][0]["losses"][-1] < model["fastnn"][0]["losses"][0]
        assert bool(model["sample"]) == (task == "text")
        assert not model["sample"] or model["sample"].startswith("The ")


def test_tasks_of_the_command_line(capsys):
    """The parser names the jobs without importing them."""
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "--task {" + ",".join(TASKS) + "}" in capsys.readouterr().out


def test_text():
    """All of the topics but the few characters that the alphabet lacks."""
    from pydoc_data.topics import topics

    found = text.text()
    whole = "\n".join(topics[name] for name in sorted(topics))
    assert found == whole.translate({ord(c): None for c in set(whole) - set(text.ALPHABET)})
    assert 0.99 * len(whole) < len(found)
    assert text.decode(text.encode(found[:1000]).tolist()) == found[:1000]


def test_text_pieces():
    """Each label is the character after its own; every piece of the text is there once, held out or not."""
    loaded = text.load()
    assert torch.equal(loaded.train_inputs[:, 1:], loaded.train_labels[:, :-1])
    inputs = torch.cat([loaded.test_inputs, loaded.train_inputs])
    labels = torch.cat([loaded.test_labels, loaded.train_labels])
    assert len(loaded.test_inputs) == round(0.05 * len(inputs))
    whole = text.text()
    starts = range(0, len(whole) - text.LENGTH, text.LENGTH)
    expected = sorted(whole[start : start + text.LENGTH + 1] for start in starts)
    pieces = torch.cat([inputs, labels[:, -1:]], 1).tolist()
    assert sorted(text.decode(piece) for piece in pieces) == expected


def test_text_missing(monkeypatch, capsys):
    """A Python without the module: one sentence, exit code 2."""
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert main(["demo", "--task", "text"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "demo: this Python lacks the text of its help(), pydoc_data.topics: install its whole standard library"
    ]


@pytest.mark.parametrize("name", text.TEXT.models)
@pytest.mark.parametrize("side", ["torch", "fastnn"])
def test_no_character_sees_a_later_one(name, side):
    model = text.TEXT.build(name, side).eval()
    x = text.load().test_inputs[:3]
    changed = x.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % len(text.ALPHABET)
    with torch.no_grad():
        y, other = model(x), model(changed)
    assert torch.allclose(y[:, :40], other[:, :40], rtol=0, atol=1e-5)
    assert not torch.allclose(y[:, 40], other[:, 40], rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", text.TEXT.models)
def test_sample(name, strict):
    """The seed decides what is drawn, torch's global generator is left alone; torch's model draws the same."""
    model = text.TEXT.build(name, "fastnn")
    before = torch.get_rng_state()
    found = text.sample(model, "if", 100, seed=1)
    assert len(found) == 102 and found.startswith("if") and set(found) <= set(text.ALPHABET)
    assert (
        found
        == text.sample(model, "if", 100, seed=1)
        == text.sample(text.TEXT.build(name, "torch"), "if", 100, seed=1)
    )
    assert found != text.sample(model, "if", 100, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_models_are_fastnns():
    """Every layer of the text's models is of the library that it was built from."""
    layers = fastnn.GRU, fastnn.TransformerEncoderLayer
    for (name, model), layer in zip(text.TEXT.models.items(), layers, strict=True):
        assert any(type(m) is layer for m in model(fastnn, 0.0).modules()), name
        assert not any(type(m) is layer for m in model(torch.nn, 0.0).modules()), name
