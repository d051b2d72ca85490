"""One process per side, so that memory is each side's own; the parent lets them work in turn, never at once."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from fastnn.demo.data import Data
from fastnn.demo.task import Task
from fastnn.demo.train import Epoch, Trainer, loss_curve
from fastnn.testing.compare import strict
from fastnn.testing.resident import Memory

_TELL_EVERY = 8  # steps between two messages: a message costs some ten microseconds


def pack(value: Any) -> bytes:
    """Tensors as bytes, for a pipe."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


class Worker:
    """What the process of one side does: a method per request."""

    def __init__(self, connection: Connection, side: str, task: Task, data: Data) -> None:
        self._connection, self._side, self._task, self._data = connection, side, task, data
        self._trainers: dict[str, Trainer] = {}

    def start(self, name: str) -> None:
        """Makes the trainer; first calls load libraries and compile kernels, so a copy warms up before."""
        memory = Memory()
        loss_curve(self._task, name, self._side, self._data, 3)
        self._trainers[name] = Trainer(self._task, name, self._side, self._data, memory=memory)

    def curve(self, name: str, steps: int) -> list[float]:
        return loss_curve(self._task, name, self._side, self._data, steps)

    def epoch(self, name: str, number: int) -> Epoch:
        steps = 0

        def tell(loss: float) -> None:
            nonlocal steps
            steps += 1
            if steps % _TELL_EVERY == 0:
                self._connection.send(("steps", (_TELL_EVERY, loss)))

        return self._trainers[name].epoch(number, tell)

    def result(self, name: str) -> bytes:
        """The trained state_dict and the outputs for the held-out part."""
        trainer = self._trainers[name]
        return pack((trainer.model.state_dict(), trainer.predict()))

    def sample(self, name: str) -> str:
        """What the trained model writes; nothing where the task has no samples."""
        return self._task.sample(self._trainers[name].model) if self._task.sample else ""


def _load_optimizer(task: Task) -> None:
    """A first step of anything: torch loads tens of MiB of Python modules, which are no model's memory."""
    layer = torch.nn.Linear(1, 1)
    layer(torch.ones(1, 1)).sum().backward()
    task.optimizer(layer.parameters()).step()


def serve(connection: Connection, side: str, task: Task, data: bytes, threads: int) -> None:
    """The process of one side: calls a method of `Worker` for each (name, arguments) received, until told None.

    fastnn runs in strict mode: a layer that would fall back to torch's op is an error.
    """
    torch.set_num_threads(threads)
    _load_optimizer(task)
    worker = Worker(connection, side, task, Data(*unpack(data)))
    with strict() if side == "fastnn" else contextlib.nullcontext():
        for request, *arguments in iter(connection.recv, None):
            try:
                connection.send(("done", getattr(worker, request)(*arguments)))
            except Exception as error:
                connection.send(("error", f"{type(error).__name__}: {error}"))


class Side:
    """The parent's end of one side's process."""

    def __init__(self, side: str, task: Task, data: Data, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        packed = pack((data.train_inputs, data.train_labels, data.test_inputs, data.test_labels))
        arguments = (theirs, side, task, packed, threads)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.side = side

    def ask(self, *request: Any, tell: Callable[[int, float], None] | None = None) -> Any:
        """Sends a request and waits for the answer; `tell` hears of finished steps and their last loss."""
        self._connection.send(request)
        while True:
            try:
                kind, value = self._connection.recv()
            except EOFError:
                raise RuntimeError(f"the process of {self.side} ended without an answer") from None
            if kind == "done":
                return value
            if kind == "error":
                raise RuntimeError(f"{self.side}: {value}")
            if tell is not None:
                tell(*value)

    def epoch(self, name: str, number: int, tell: Callable[[int, float], None] | None = None) -> Epoch:
        epoch: Epoch = self.ask("epoch", name, number, tell=tell)
        return epoch

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()
