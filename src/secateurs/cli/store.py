"""``secateurs store``: the file of measurements, to look at, to exchange and to tidy up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from secateurs.cli import options as o
from secateurs.cli.opening import writable
from secateurs.cli.progress import shown
from secateurs.cli.running import emit, guarded, talk
from secateurs.errors import DataError, why
from secateurs.files import require_regular
from secateurs.report import wording

if TYPE_CHECKING:
    from secateurs.latency.store import Store

app = typer.Typer(help="The file of measurements: ls, export, import, check, vacuum.", no_args_is_help=True)


def _open(path: Path | None, *, make: bool = False) -> Store:
    """The store in a file.

    Raises:
        DataError: there is none, and none is to be made.
    """
    from secateurs.latency.store import Store, default_path

    place = path or default_path()
    if not make and not place.exists():
        raise DataError(f"There is no store of measurements at {place}. Measure something, or name one with --store.")
    with shown(talk()) as progress:
        return Store(place, progress=progress)


@app.command("ls")
@guarded
def ls(store: o.Store = None, as_json: o.Json = False) -> None:
    """What was measured on which device."""
    with _open(store) as held:
        found = {
            "store": str(held.path),
            "file_bytes": held.path.stat().st_size,
            "targets": [vars(holding) for holding in held.summary()],
        }
    emit(found, lambda console: _show(found, console), as_json=as_json)


def _show(found: dict[str, Any], console: Console) -> None:
    table = Table(header_style="dim", box=None, pad_edge=False)
    for name, justify in (("target", "left"), ("device and runtime", "left"), ("rows", "right"), ("last", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for holding in found["targets"]:
        facts = dict(holding["fingerprint"])
        name = str(facts.pop("target", ""))
        about = ", ".join(f"{key} {value}" for key, value in facts.items())
        last = time.strftime("%Y-%m-%d %H:%M", time.localtime(holding["newest"]))
        table.add_row(name, about, str(holding["rows"]), last)
    console.print(table)
    console.print(f"{wording.size(found['file_bytes'])} in {found['store']}")


@app.command("export")
@guarded
def export(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, one line of JSON per measurement.")],
    store: o.Store = None,
    as_json: o.Json = False,
) -> None:
    """Write every measurement to a file that 'store import' reads, here or on another machine."""
    from secateurs.files import write_atomic

    writable(output)
    with _open(store) as held:
        if output.exists() and output.samefile(held.path):
            raise DataError(f"{output} is the store itself. Choose another file to write the measurements to.")
        lines = list(held.export_lines())
    write_atomic(output, "".join(f"{line}\n" for line in lines).encode())
    found = {"output": str(output), "rows": len(lines)}
    emit(found, lambda console: console.print(f"{len(lines)} measurements written to {output}."), as_json=as_json)


@app.command("import")
@guarded
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A file that 'store export' wrote.")],
    store: o.Store = None,
    as_json: o.Json = False,
) -> None:
    """Add measurements from a file; what is here already stays as it is.

    They serve where device, system, runtime version, precision and threads are the same.
    """
    from secateurs.latency.stored_rows import exported_rows, read_lines

    try:
        require_regular(source, "File of measurements")
        given = sum(1 for _ in exported_rows(read_lines(source), str(source)))  # before a store is made
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source} cannot be read ({why(error)}). Give a file that 'secateurs store export' wrote."
        ) from error
    with _open(store, make=True) as held:
        added = held.import_lines(read_lines(source), str(source))
    found = {"source": str(source), "rows": given, "added": added}
    emit(
        found,
        lambda console: console.print(f"{added} of {given} measurements added, {given - added} were here already."),
        as_json=as_json,
    )


@app.command("check")
@guarded
def check(store: o.Store = None, as_json: o.Json = False) -> None:
    """Read every measurement; damaged ones are set aside, one by one, and measured again when they are needed."""
    with _open(store) as held:
        seen = held.check()
        found = {
            "store": str(held.path),
            "writable": held.writable,
            "sound": seen.sound,
            "damaged": seen.damaged,
            "set_aside": seen.set_aside,
            "structure": list(seen.structure),
        }
    emit(found, lambda console: _show_check(found, console), as_json=as_json)
    if seen.structure:
        raise DataError(
            f"The file {found['store']} is damaged: {seen.structure[0]}. Save what can be read with 'secateurs store "
            f"export', then move the file away."
        )


def _show_check(found: dict[str, Any], console: Console) -> None:
    console.print(
        f"{found['sound']} measurements are sound, {found['damaged']} were found damaged; {found['set_aside']} are set "
        f"aside in all{'' if found['writable'] else ' (the file can only be read)'}."
    )


@app.command("vacuum")
@guarded
def vacuum(store: o.Store = None, as_json: o.Json = False) -> None:
    """Give freed space back to the disk."""
    with _open(store) as held:
        before = held.path.stat().st_size
        held.vacuum()
        after = held.path.stat().st_size
    found = {"bytes_before": before, "bytes_after": after}
    emit(
        found,
        lambda console: console.print(f"{wording.size(before)} before, {wording.size(after)} now."),
        as_json=as_json,
    )
