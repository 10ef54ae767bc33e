"""``secateurs ls``: what is here, what can be used, or why not."""

from __future__ import annotations

import inspect
import shutil
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from secateurs.cli.options import Json
from secateurs.cli.running import emit, guarded
from secateurs.errors import DataError, SecateursError
from secateurs.registry import load, names
from secateurs.report.terminal import styled

KINDS = ("strategies", "criteria", "targets", "models", "data")
DATA_FORMS = {
    "digits": "scikit-learn's handwritten digits; needs no download",
    "parquet:TRAIN,TEST": "image bytes in a column jpeg or image, and a column label",
    "imagefolder:DIR": "DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg",
    "coco:DIR": "images with boxes: DIR/annotations/*.json and their images",
    "yolo:data.yaml": "images with boxes: images/*.jpg and labels/*.txt",
    "segmentation:DIR": "DIR/images/*.jpg and DIR/masks/*.png of class indices",
    "csv:FILE": "a row per sample: numbers, or a column image with paths, and a column label or target",
    "audio:DIR": "DIR/CLASS/*.wav, or DIR/train/CLASS and DIR/test/CLASS",
    "file.py:factory": "a function that returns train and test loaders",
}


@guarded
def verb(
    kind: Annotated[str | None, typer.Argument(metavar="[strategies|criteria|targets|models|data]")] = None,
    as_json: Json = False,
) -> None:
    """What is here, what can be used, or why not."""
    if kind is not None and kind not in KINDS:
        raise DataError(f"There is no list of {kind!r}. There are {', '.join(KINDS)}.")
    rows = [row for one in ([kind] if kind else KINDS) for row in _rows(one)]
    emit(rows, lambda console: _show(rows, console), as_json=as_json)


def _rows(kind: str) -> list[dict[str, str | bool]]:
    """One row per name: kind, name, available, and what it is or why it cannot be used."""
    if kind == "models":
        from secateurs.models import names as model_names

        return [{"kind": kind, "name": name, "available": True, "about": "built in"} for name in model_names()]
    if kind == "data":
        return [{"kind": kind, "name": form, "available": True, "about": about} for form, about in DATA_FORMS.items()]
    from secateurs.latency.targets import make_target

    rows: list[dict[str, str | bool]] = []
    for name in names(kind):
        try:
            found = load(kind, name)
            target = make_target(name) if kind == "targets" else None
            reason = None if target is None else target.available()
        except SecateursError as error:
            reason, found, target = str(error), None, None
        # A module may hold several targets.
        about = reason or _about(inspect.getmodule(found) if target is None else found)
        rows.append({"kind": kind, "name": name, "available": reason is None, "about": about})
        if target is not None and reason is None:
            rows += [_precision(name, one) for one in target.precisions if one != target.precision]
    if kind == "targets":
        missing = shutil.which("ssh") is None
        about = "OpenSSH's client 'ssh' is not installed" if missing else "another machine, see docs/targets.md"
        rows.append({"kind": kind, "name": "ssh://HOST/TARGET", "available": not missing, "about": about})
    return rows


def _precision(target: str, precision: str) -> dict[str, str | bool]:
    """The row of a target that can be used, in another precision."""
    from secateurs.latency.targets import make_target

    name = f"{target}:{precision}"
    reason = make_target(name).available()
    return {"kind": "targets", "name": name, "available": reason is None, "about": reason or f"the same in {precision}"}


def _about(documented: object) -> str:
    """What the first line of a docstring says behind the name."""
    first = (inspect.getdoc(documented) or "").split("\n\n")[0].replace("\n", " ").replace("``", "")
    return first.partition(": ")[2] or first


def _show(rows: list[dict[str, str | bool]], console: Console) -> None:
    table = Table(header_style="dim", box=None, pad_edge=False)
    for name in ("", "name", "here", "what it is, or why it cannot be used"):
        table.add_column(name, no_wrap=name == "name")
    before = ""
    for row in rows:
        kind = str(row["kind"])
        usable = styled(("yes", "green") if row["available"] else ("no", "red"))
        table.add_row(styled((kind if kind != before else "", "dim")), str(row["name"]), usable, str(row["about"]))
        before = kind
    console.print(table)
