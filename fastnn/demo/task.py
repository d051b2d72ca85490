"""What sets one job of the demo apart from another; the rest (processes, training, report, checks) is common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

import torch

from fastnn.demo.data import Data
from fastnn.testing.cases import library

Models = dict[str, Callable[[ModuleType, float], torch.nn.Module]]


@dataclass(frozen=True)
class Task:
    """A job; functions are those of a module, by name, so that it travels to the processes of the sides.

    title: what the data is; unit: what is counted and predicted, one label each. load: raises `MissingError`.
    models: by name, each a function of the module that has the layers and of the dropout.
    epochs, quick_epochs: of each model. least: the held-out accuracy that a model must reach after `epochs`.
    sample: what a trained model can say for itself, shown below its epochs.
    """

    title: str
    unit: str
    load: Callable[[], Data]
    models: Models
    optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
    batch: int
    dropout: float
    epochs: int
    quick_epochs: int
    least: dict[str, float]
    sample: Callable[[torch.nn.Module], str] | None = None

    def build(self, name: str, side: str, dropout: float | None = None, seed: int = 0) -> torch.nn.Module:
        """A model of one side with the weights that torch.nn draws from `seed`, carried over by state_dict."""
        dropout = self.dropout if dropout is None else dropout
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            reference = self.models[name](torch.nn, dropout)
        if side == "torch":
            return reference
        model = self.models[name](library(side), dropout)
        model.load_state_dict(reference.state_dict())
        return model
