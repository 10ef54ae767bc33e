"""The report in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from secateurs.budgets import ACCURACY, Metric
from secateurs.report import wording
from secateurs.report.record import Record, TargetRow
from secateurs.report.terminal import styled


def table(record: Record) -> Table:
    """Dense against pruned, as a rich table."""
    target = record.target
    threads = f"{target.threads} thread{'s' if target.threads != 1 else ''}"
    title = f"{record.model} on {target.name}, {threads}, batch {record.batch}"
    result = Table(title=styled(title), title_justify="left", header_style="dim")
    for place, name in enumerate(wording.columns(record)):
        result.add_column(name, justify="right" if place else "left")
    for row in wording.rows(record):
        result.add_row(*(styled(cell) for cell in row))
    return result


def files(row: TargetRow | Record, metric: Metric = ACCURACY) -> Table:
    """The four files of a quantised target, as a rich table."""
    return _plain(wording.file_columns(metric), wording.file_rows(row.files, metric))


def targets(record: Record) -> Table:
    """The network on every target, as a rich table; what the model said is on the page, the files are told below it."""
    columns = wording.target_columns(record.metric)
    shown = columns.index("by the model")
    return _plain(columns[:shown], [row[:shown] for row in wording.target_rows(record)])


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    result = Table(header_style="dim")
    for place, name in enumerate(columns):
        result.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        result.add_row(*(styled(cell) for cell in row))
    return result


def show(record: Record, console: Console) -> None:
    """Print verdict, table and notes."""
    console.print()
    console.print(table(record))
    if len(record.targets) > 1:
        console.print(targets(record))
    if record.files:
        console.print(files(record, record.metric))
    for row in record.targets[1:]:
        if row.files:
            console.print(styled(f"Files on {row.name}:"))
            console.print(files(row, record.metric))
    colour = "green" if record.pruned_within_budget else "red"
    console.print(styled((wording.verdict(record), colour)))
    for note in record.notes:
        console.print(styled(("Note:", "yellow"), f" {note}"))
    parts = [
        f"{name} {wording.duration(value)}"
        for name, value in record.seconds.model_dump().items()
        if name != "total" and value >= 0.05
    ]
    console.print(styled((f"{', '.join(parts)}; total {wording.duration(record.seconds.total)}", "dim")))
