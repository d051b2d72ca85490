"""A progress bar on a terminal, silence elsewhere; no dependencies."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType


class Progress:
    """`with Progress(total, "bench") as bar: bar.step("what is next")`, on stderr.

    On something that is not a terminal, or with enabled=False, only `print` writes anything.
    """

    def __init__(self, total: int, title: str, enabled: bool = True) -> None:
        self._total, self._title, self._done = max(1, total), title, 0
        self._enabled = enabled and sys.stderr.isatty()
        self._start = time.monotonic()
        self._drawn = 0.0

    def step(self, text: str = "", count: int = 1) -> None:
        """`count` more of the total begin (or ended); `text` says what."""
        self._done += count
        now = time.monotonic()
        if self._enabled and (now - self._drawn > 0.05 or self._done >= self._total):
            self._drawn = now
            share = min(1.0, self._done / self._total)
            bar = ("#" * int(20 * share)).ljust(20, ".")
            line = f"{self._title} [{bar}] {self._done}/{self._total} {now - self._start:.0f} s {text}"
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r" + line[:width].ljust(width))
            sys.stderr.flush()

    def print(self, text: str) -> None:
        """A line of output above the bar."""
        self._clear()
        print(text, flush=True)

    def _clear(self) -> None:
        if self._enabled:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._clear()
