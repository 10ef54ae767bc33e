"""Remaining time in the terminal: from the pace so far, and nothing where that says nothing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from secateurs.cli import progress
from secateurs.cli.progress import BarProgress, LineProgress, remaining


@pytest.mark.parametrize(
    ("done", "total", "spent", "told"),
    [
        (1, 4, 2.0, "6.0 s left"),
        (30, 40, 240.0, "1 min 20 s left"),
        (0, 4, 2.0, ""),
        (4, 4, 2.0, ""),
        (7, None, 2.0, ""),
    ],
)
def test_what_remains_at_the_pace_so_far(done: int, total: int | None, spent: float, told: str) -> None:
    assert remaining(done, total, spent) == told


def test_lines_of_a_log_say_what_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    out = io.StringIO()
    with LineProgress(Console(file=out, width=100)) as shown, shown.task("measure", 4) as task:
        monkeypatch.setattr(progress.time, "monotonic", lambda: 20.0)
        task.advance(1, "3.2 ms")
    first = out.getvalue().splitlines()[0]
    assert first == "measure: 1/4  1 min 00 s left  3.2 ms"


def test_bars_say_what_remains() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with BarProgress(console) as shown, shown.task("measure", 4) as task:
        bar = shown.bars.tasks[0]
        bar.start_time = bar.get_time() - 10.0
        task.advance(1)
        shown.bars.refresh()
        told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "30 s left" in told
