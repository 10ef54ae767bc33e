"""``secateurs report``: the page and the table of a finished run again, from what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secateurs.cli.options import Json
from secateurs.cli.running import emit, guarded
from secateurs.errors import DataError


@guarded
def verb(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the page here instead of RUN/report.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The page and the table of a run again."""
    from secateurs.files import write_atomic
    from secateurs.jobs.run_folder import RunFiles
    from secateurs.report import Record, render
    from secateurs.report.console import show

    if not run.is_dir():
        raise DataError(f"{run} is no folder. Give the folder of a run.")
    files = RunFiles(run)
    if not files.result.exists():
        state = "has not finished: continue it with 'secateurs prune --resume -o" if files.job.exists() else ""
        raise DataError(
            f"The run in {run} {state} {run}'." if state else f"Folder {run} holds no run. Give one that 'prune' wrote."
        )
    record = Record.load(files.result)
    page = output or files.report
    write_atomic(page, render(record).encode())

    def show_all(console: Console) -> None:
        show(record, console)
        console.print(f"Page: {page}")

    emit(record.to_dict(), show_all, as_json=as_json)
