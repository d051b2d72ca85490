"""Memory that stays: freed tensors are reused by the next ones in place of going back to the system.

On Linux, a tensor of more than 32 MiB is mapped when it is made and unmapped when it is freed, so that every step pays
a page fault for each 4 KiB of it: ReLU forward and backward on 51 MB take three times as long as on memory that stays.

    fastnn.memory.retain()               # for the rest of the process
    with fastnn.memory.retain(): ...     # or for a block; also: handle.release(), fastnn.memory.release()

It concerns every allocation of the process, torch's own tensors too, so nothing calls it but you. The price: the
process keeps the most memory that it ever needed, and gaps in the heap: some five times the size of a 64 MB tensor that
is made again and again (its first few calls still fault), nothing that shows in whole networks. It works by settings of
glibc's malloc; with another malloc (macOS, musl, jemalloc) `retain` warns, changes nothing, and `why_not` says the
reason. Only the main thread's memory stays in full: other threads have heaps of 64 MiB each, beyond which tensors are
mapped as before.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import warnings
from types import TracebackType

_LIBC = "libc.so.6"
_MADV_HUGEPAGE, _MADV_NOHUGEPAGE = 14, 15
_HUGE_PAGE = 2 << 20
_PARAMETERS = {"trim_threshold": -1, "mmap_threshold": -3, "mmap_max": -4}  # of mallopt
_RETAINING = {"mmap_max": 0, "trim_threshold": -1}  # nothing mapped, nothing given back
# glibc starts with a rule that moves the two thresholds with the sizes that are freed and that no call can switch on
# again: these are where that rule ends up in a process with large tensors.
_DEFAULTS = {"mmap_max": 65536, "mmap_threshold": 32 << 20, "trim_threshold": 64 << 20}


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.malloc_trim.argtypes = [ctypes.c_size_t]
    return libc


@functools.cache
def why_not() -> str | None:
    """Why `retain` can do nothing in this process; None where it can."""
    try:
        used, glibc = ctypes.CDLL(None), ctypes.CDLL(_LIBC)
        if not hasattr(glibc, "gnu_get_libc_version"):
            return f"{_LIBC} is not glibc's"
        used_malloc, glibc_malloc = (ctypes.cast(c.malloc, ctypes.c_void_p).value for c in (used, glibc))
    except (OSError, TypeError, AttributeError):
        return "the C library is not glibc"
    return None if used_malloc == glibc_malloc else "another malloc than glibc's is loaded"


def set_malloc(**values: int) -> None:
    """glibc's mallopt for each of `_PARAMETERS` that is named; only where `why_not` is None."""
    for name, value in values.items():
        if _libc().mallopt(_PARAMETERS[name], value) != 1:
            raise OSError(f"glibc refused {name}={value}")


def trim() -> None:
    """Gives freed memory back to the system; it comes back with page faults."""
    if why_not() is None:
        _libc().malloc_trim(0)


class Retention:
    """What `retain` returns: `release` undoes this one call, as leaving a `with` block does."""

    def release(self) -> None:
        """Undoes the call; memory stays as long as another call's handle holds it. A second time does nothing."""
        with _lock:
            if self in _held:
                _held.remove(self)
                if not _held:
                    _undo()

    def __enter__(self) -> Retention:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()


_lock = threading.Lock()
_held: list[Retention] = []
_huge: list[tuple[int, int]] = []  # start and size of what was advised: none or one


def retain(*, huge_pages: bool = False) -> Retention:
    """Keeps freed memory in the process from now on; returns the handle that undoes it. See the module.

    huge_pages: ask the system for pages of 2 MiB too (Linux, where transparent huge pages are "madvise" or
    "always"). They are a little faster once more, and memory is counted in these larger steps.
    """
    handle = Retention()
    reason = why_not()
    if reason is not None:
        warnings.warn(f"fastnn.memory.retain has no effect: {reason}", RuntimeWarning, stacklevel=2)
        return handle
    with _lock:
        set_malloc(**_RETAINING)
        if huge_pages:
            _advise_huge_pages()
        _held.append(handle)
    return handle


def retained() -> bool:
    """Whether freed memory stays in the process now."""
    return bool(_held)


def release() -> None:
    """Undoes all calls of `retain`: malloc as before, and what is free goes back to the system."""
    with _lock:
        if _held:
            _held.clear()
            _undo()


def _undo() -> None:
    set_malloc(**_DEFAULTS)
    while _huge:
        _libc().madvise(*_huge.pop(), _MADV_NOHUGEPAGE)
    trim()


def _advise_huge_pages() -> None:
    """Lets the heap grow by half of the machine's memory, advises that part, and leaves it free.

    Address space only, a page counts once it is written. The advice belongs to a range of addresses: what the heap grows
    by later would not have it.
    """
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    block = _libc().malloc(size) if not _huge else None
    if block is None:
        return  # done before, or the system does not give so much: ordinary pages
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    _huge.append((start, (block + size) // _HUGE_PAGE * _HUGE_PAGE - start))
    _libc().madvise(*_huge[0], _MADV_HUGEPAGE)
    _libc().free(block)
