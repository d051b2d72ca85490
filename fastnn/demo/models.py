"""The two models of the demo, each a function of the module that has the layers: `torch.nn` or `fastnn`."""

from __future__ import annotations

from types import ModuleType

import torch

from fastnn.testing.cases import library

HIDDEN = 512
DROPOUT = 0.5


def fcnet(nn: ModuleType, dropout: float = DROPOUT) -> torch.nn.Module:
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


def cnn(nn: ModuleType, dropout: float = DROPOUT) -> torch.nn.Module:
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


MODELS = {"FCNet": fcnet, "CNN": cnn}


def build(name: str, side: str, dropout: float = DROPOUT, seed: int = 0) -> torch.nn.Module:
    """A model of one side with the weights that torch.nn draws from `seed`, carried over by state_dict."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reference = MODELS[name](torch.nn, dropout)
    if side == "torch":
        return reference
    model = MODELS[name](library(side), dropout)
    model.load_state_dict(reference.state_dict())
    return model
