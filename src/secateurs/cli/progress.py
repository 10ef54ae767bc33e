"""Progress in the terminal: bars where someone looks, plain lines where a file does."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.progress import Task as BarTask
from rich.text import Text

from secateurs.progress import Progress, Task
from secateurs.report.terminal import styled
from secateurs.report.wording import duration

LINE_EVERY_S = 15.0


def remaining(done: int, total: int | None, spent_s: float) -> str:
    """``1 min 20 s left`` at the pace so far; empty where that says nothing yet."""
    if not total or done <= 0 or done >= total:
        return ""
    return f"{duration(spent_s * (total - done) / done)} left"


class _Time(ProgressColumn):
    """Time spent, and what remains at the pace so far."""

    def render(self, task: BarTask) -> Text:
        spent = task.elapsed or 0.0
        left = remaining(int(task.completed), None if task.total is None else int(task.total), spent)
        return Text(duration(spent) + (f", {left}" if left else ""), style="dim")


class _Bar:
    """One rich bar; when it ends, a line with its time stays."""

    def __init__(self, owner: BarProgress, name: str, total: int | None) -> None:
        self._owner, self._name, self._total = owner, name, total
        self._start = time.monotonic()
        self._id: TaskID | None = None

    def __enter__(self) -> _Bar:
        self._start = time.monotonic()
        self._id = self._owner.bars.add_task(self._name, total=self._total, note="")
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        if self._id is not None:
            self._owner.bars.update(self._id, advance=steps, note=note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._id is not None:
            self._owner.bars.remove_task(self._id)
        if kind is None:
            spent = time.monotonic() - self._start
            self._owner.bars.console.print(styled(("✓", "green"), f" {self._name} ", (duration(spent), "dim")))


class BarProgress:
    """Bars on a terminal. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self.bars = Bars(
            *columns,
            _Time(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            transient=True,
        )

    def __enter__(self) -> BarProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def task(self, name: str, total: int | None = None) -> Task:
        """A bar."""
        return _Bar(self, name, total)

    def say(self, message: str) -> None:
        """One line above the bars."""
        self.bars.console.print(styled(message))


class _Line:
    """Prints how far it is every few seconds, and its time at the end."""

    def __init__(self, owner: LineProgress, name: str, total: int | None) -> None:
        self._owner, self._name, self._total = owner, name, total
        self._done, self._start, self._told = 0, time.monotonic(), time.monotonic()

    def __enter__(self) -> _Line:
        self._start = self._told = time.monotonic()
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._told >= LINE_EVERY_S:
            self._told = now
            share = f"{self._done}/{self._total}" if self._total else str(self._done)
            told = [share, remaining(self._done, self._total, now - self._start), note]
            self._owner.say(f"{self._name}: {'  '.join(text for text in told if text)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._owner.say(f"{self._name}: done in {duration(time.monotonic() - self._start)}")


class LineProgress:
    """Plain lines, for logs and pipes. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def task(self, name: str, total: int | None = None) -> Task:
        """A task that tells how far it is in lines."""
        return _Line(self, name, total)

    def say(self, message: str) -> None:
        """One line."""
        self._console.print(styled(message))


def shown(console: Console) -> BarProgress | LineProgress:
    """The progress for this console."""
    return BarProgress(console) if console.is_terminal and sys.stderr.isatty() else LineProgress(console)


__all__ = ["BarProgress", "LineProgress", "Progress", "shown"]
