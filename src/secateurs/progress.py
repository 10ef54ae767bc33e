"""Progress of long work, reported to whoever wants to show it."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Task(Protocol):
    """One running piece of work; a context manager."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report ``steps`` more done; ``note`` is a short current figure such as ``loss 1.23``."""

    def __enter__(self) -> Task: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Progress(Protocol):
    """Creates tasks. The command line shows them as bars; the default shows nothing."""

    def task(self, name: str, total: int | None = None) -> Task:
        """Start a task of ``total`` steps (None: unknown)."""

    def say(self, message: str) -> None:
        """Tell the user one line."""


class _SilentTask:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass

    def __enter__(self) -> _SilentTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Silent:
    def task(self, name: str, total: int | None = None) -> Task:
        return _SilentTask()

    def say(self, message: str) -> None:
        pass


silent: Progress = _Silent()
"""Reports nothing."""
