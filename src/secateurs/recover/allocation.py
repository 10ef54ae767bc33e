"""Freed memory stays with the process while a network is trained on a CPU.

glibc gives every large tensor back to the system when it is freed, and the system clears its pages when the next one
is allocated. A training step on 224×224 images spent more than half of its time on that.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Names of parameters of ``mallopt`` (malloc.h of glibc)."""
_LARGEST = 2**31 - 1
_AFTERWARDS = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20), (_MMAP_MAX, 65536))
"""What glibc adapts to where large blocks are freed; its own adapting ends with the first ``mallopt``."""

_lock, _depth = threading.Lock(), 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, memory that is freed is used again instead of being returned; at the end it is returned.

    Of the whole process, and nests. Does nothing without glibc, and where the environment sets ``MALLOC_*`` or
    ``GLIBC_TUNABLES`` for the user.
    """
    glibc = _glibc()
    if glibc is None or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        yield
        return
    _enter(1, lambda: _set(glibc, ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST))))
    try:
        yield
    finally:
        _enter(-1, lambda: _returned(glibc))


def _enter(change: int, work: Callable[[], None]) -> None:
    """Does the work when the first context begins or the last one ends."""
    global _depth
    with _lock:
        before, _depth = _depth, _depth + change
        if 0 in (before, _depth):
            work()


def _set(glibc: ctypes.CDLL, settings: tuple[tuple[int, int], ...]) -> None:
    for name, value in settings:
        glibc.mallopt(name, value)


def _returned(glibc: ctypes.CDLL) -> None:
    _set(glibc, _AFTERWARDS)
    glibc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, None where it is another one."""
    try:
        found = ctypes.CDLL(None)
        found.gnu_get_libc_version, found.mallopt, found.malloc_trim  # noqa: B018
    except (AttributeError, OSError, TypeError):
        return None
    found.malloc_trim.argtypes = [ctypes.c_size_t]
    return found
