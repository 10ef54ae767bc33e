"""The report in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secateurs.report import wording
from secateurs.report.record import Record


def table(record: Record) -> Table:
    """Dense against pruned, as a rich table."""
    target = record.target
    threads = f"{target.threads} thread{'s' if target.threads != 1 else ''}"
    title = f"{record.model} on {target.name}, {threads}, batch {record.batch}"
    result = Table(title=escape(title), title_justify="left", header_style="dim")
    for name, justify in (("", "left"), ("dense", "right"), ("pruned", "right"), ("", "right")):
        result.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in wording.rows(record):
        result.add_row(*(escape(cell) for cell in row))
    return result


def show(record: Record, console: Console) -> None:
    """Print verdict, table and notes."""
    console.print()
    console.print(table(record))
    colour = "green" if record.pruned_within_budget else "red"
    console.print(f"[{colour}]{escape(wording.verdict(record))}[/]", highlight=False)
    for note in record.notes:
        console.print(f"[yellow]Note:[/] {escape(note)}", highlight=False)
    parts = [
        f"{name} {wording.duration(value)}"
        for name, value in record.seconds.model_dump().items()
        if name != "total" and value >= 0.05
    ]
    console.print(f"[dim]{', '.join(parts)}; total {wording.duration(record.seconds.total)}[/]", highlight=False)
