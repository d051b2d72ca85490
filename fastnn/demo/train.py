"""Training of one model on one side: epochs, loss curves, predictions, the memory that training takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastnn.demo.data import Digits
from fastnn.demo.models import DROPOUT, build
from fastnn.testing.resident import Memory

BATCH = 100
LEARNING_RATE = 0.02
MOMENTUM = 0.9


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. loss: mean over its steps; losses: of each step; accuracy: on the held-out part, 0 to 1.

    seconds: of the training steps alone. memory: see `Memory`.
    """

    loss: float
    losses: list[float]
    accuracy: float
    seconds: float
    images_per_second: float
    memory: int


def batches(digits: Digits, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of one epoch, BATCH at a time, in an order that depends on `epoch` alone."""
    order = torch.randperm(len(digits.train_labels), generator=torch.Generator().manual_seed(epoch))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        index = order[start : start + BATCH]
        yield digits.train_images[index], digits.train_labels[index]


class Trainer:
    """One model of one side with its optimizer."""

    def __init__(
        self, name: str, side: str, digits: Digits, *, dropout: float = DROPOUT, memory: Memory | None = None
    ) -> None:
        self.digits = digits
        self.model = build(name, side, dropout)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        self.memory = memory or Memory()

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One update; returns the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def epoch(self, number: int, tell: Callable[[float], None] | None = None) -> Epoch:
        """Trains for one epoch, then evaluates; `tell` hears the loss of each step."""
        torch.manual_seed(number)
        self.model.train()
        self.memory.reset()
        losses, seconds = [], 0.0
        for images, labels in batches(self.digits, number):
            start = time.perf_counter()
            losses.append(self.step(images, labels))
            seconds += time.perf_counter() - start
            if tell is not None:
                tell(losses[-1])
        memory = self.memory.peak()
        right = self.predict().argmax(1) == self.digits.test_labels
        loss = sum(losses) / len(losses)
        return Epoch(
            loss, losses, float(right.float().mean()), seconds, len(losses) * BATCH / seconds, memory
        )

    def predict(self) -> torch.Tensor:
        """Outputs for the held-out images in eval mode, N x 10."""
        return predict(self.model, self.digits.test_images)


def predict(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Outputs in eval mode, BATCH images at a time, N x 10."""
    training = model.training
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in images.split(BATCH)])
    model.train(training)
    return outputs


def loss_curve(name: str, side: str, digits: Digits, steps: int) -> list[float]:
    """Losses of the first `steps` steps from the common initial weights, without dropout."""
    trainer = Trainer(name, side, digits, dropout=0.0)
    trainer.model.train()
    losses: list[float] = []
    epoch = 0
    while len(losses) < steps:
        for images, labels in batches(digits, epoch):
            losses.append(trainer.step(images, labels))
            if len(losses) == steps:
                break
        epoch += 1
    return losses


def difference(a: list[float], b: list[float]) -> float:
    """Largest relative difference of two loss curves."""
    return max(abs(x - y) / max(abs(x), abs(y), 1e-12) for x, y in zip(a, b, strict=True))
