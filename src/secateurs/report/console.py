"""The report in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from secateurs.report import wording
from secateurs.report.record import Record
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


def files(record: Record) -> Table:
    """The four files of a quantised target, as a rich table."""
    result = Table(header_style="dim")
    for place, name in enumerate(wording.FILE_COLUMNS):
        result.add_column(name, justify="right" if place else "left")
    for row in wording.file_rows(record):
        result.add_row(*(styled(cell) for cell in row))
    return result


def show(record: Record, console: Console) -> None:
    """Print verdict, table and notes."""
    console.print()
    console.print(table(record))
    if record.files:
        console.print(files(record))
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
