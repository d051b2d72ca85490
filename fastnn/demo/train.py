"""Training of one model on one side: epochs, loss curves, predictions, the memory that training takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fastnn.demo.data import Data
from fastnn.demo.task import Task
from fastnn.testing.cases import library
from fastnn.testing.resident import Memory


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. loss: mean over its steps; losses: of each step; accuracy: on the held-out part, 0 to 1.

    seconds: of the training steps alone; per_second: labels that were learnt from. memory: see `Memory`.
    """

    loss: float
    losses: list[float]
    accuracy: float
    seconds: float
    per_second: float
    memory: int


def batches(data: Data, size: int, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of one epoch, `size` samples at a time, in an order that depends on `epoch` alone."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(epoch))
    for start in range(0, len(order) - size + 1, size):
        index = order[start : start + size]
        yield data.train_inputs[index], data.train_labels[index]


class Trainer:
    """One model of one side with its optimizer."""

    def __init__(
        self,
        task: Task,
        name: str,
        side: str,
        data: Data,
        *,
        dropout: float | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.task, self.data = task, data
        self.model = task.build(name, side, dropout)
        self.criterion = library(side).CrossEntropyLoss()
        self.optimizer = task.optimizer(self.model.parameters())
        self.memory = memory or Memory()

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        """One update; returns the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss: torch.Tensor = self.criterion(self.model(inputs).flatten(0, -2), labels.flatten())
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def epoch(self, number: int, tell: Callable[[float], None] | None = None) -> Epoch:
        """Trains for one epoch, then evaluates; `tell` hears the loss of each step."""
        torch.manual_seed(number)
        self.model.train()
        self.memory.reset()
        losses, seconds, count = [], 0.0, 0
        for inputs, labels in batches(self.data, self.task.batch, number):
            start = time.perf_counter()
            losses.append(self.step(inputs, labels))
            count += labels.numel()
            seconds += time.perf_counter() - start
            if tell is not None:
                tell(losses[-1])
        memory = self.memory.peak()
        right = self.predict().argmax(-1) == self.data.test_labels.flatten()
        loss = sum(losses) / len(losses)
        return Epoch(loss, losses, float(right.float().mean()), seconds, count / seconds, memory)

    def predict(self) -> torch.Tensor:
        """Outputs for the held-out part in eval mode, labels x classes."""
        return predict(self.model, self.data.test_inputs, self.task.batch)


def predict(model: torch.nn.Module, inputs: torch.Tensor, batch: int) -> torch.Tensor:
    """Outputs in eval mode, `batch` samples at a time, labels x classes."""
    training = model.training
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(part).flatten(0, -2) for part in inputs.split(batch)])
    model.train(training)
    return outputs


def loss_curve(task: Task, name: str, side: str, data: Data, steps: int) -> list[float]:
    """Losses of the first `steps` steps from the common initial weights, without dropout."""
    trainer = Trainer(task, name, side, data, dropout=0.0)
    trainer.model.train()
    losses: list[float] = []
    epoch = 0
    while len(losses) < steps:
        for inputs, labels in batches(data, task.batch, epoch):
            losses.append(trainer.step(inputs, labels))
            if len(losses) == steps:
                break
        epoch += 1
    return losses


def difference(a: list[float], b: list[float]) -> float:
    """Largest relative difference of two loss curves."""
    return max(abs(x - y) / max(abs(x), abs(y), 1e-12) for x, y in zip(a, b, strict=True))
