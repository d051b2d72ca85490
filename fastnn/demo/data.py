"""What a job of the demo is trained on, and the sentence that says what is missing for it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

_SEED = 0


class MissingError(Exception):
    """In one sentence, what the demo lacks here."""


@dataclass(frozen=True)
class Data:
    """Inputs and the classes to predict from them, of the part to train on and of the held-out one.

    inputs: N x ...; labels: int64, N or, with a class for each position, N x T.
    """

    train_inputs: torch.Tensor
    train_labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor


def split(inputs: torch.Tensor, labels: torch.Tensor, held_out: int) -> Data:
    """The first `held_out` samples of a fixed random order are held out."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(_SEED))
    inputs, labels = inputs[order], labels[order]
    return Data(inputs[held_out:], labels[held_out:], inputs[:held_out], labels[:held_out])


def require(package: str, purpose: str) -> None:
    """Raises `MissingError` where the package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise MissingError(f"demo: {package}, which {purpose}, is not installed: run `pip install {package}`")
