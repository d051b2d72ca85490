"""The memory of this process that is resident: what a step takes, whichever allocator it comes from."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

from fastnn import memory


def give_back_at_once() -> None:
    """From now on, freed blocks of 64 KiB and more leave the process (glibc): what is resident is in use."""
    if memory.why_not() is None:
        memory.set_malloc(mmap_threshold=64 << 10, trim_threshold=64 << 10)
        memory.trim()


class Memory:
    """Highest resident memory of this process above its level when the object was made, in bytes.

    Whole pages of every allocator count: torch's, fastnn's scratch, the libraries'. Pages of files (the libraries'
    code) do not, where the system tells them apart (Linux); elsewhere the peak is that of the whole process so far.
    """

    def __init__(self) -> None:
        self._base = self._status("VmRSS")

    def now(self) -> int:
        """Bytes at this moment."""
        return max(0, self._status("VmRSS") - self._base)

    def reset(self) -> None:
        """The peak starts from here."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        """Bytes since the last reset."""
        return max(0, self._status("VmHWM") - self._base)

    @staticmethod
    def _status(key: str) -> int:
        try:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        except OSError:
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
        return (sizes[key] - sizes.get("RssFile", 0)) * 1024
