"""From the options of a verb to the model, the data and the places that the work needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from secateurs.cli.options import input_shape
from secateurs.errors import DataError
from secateurs.progress import Progress

if TYPE_CHECKING:
    from secateurs.models import Loaded
    from secateurs.plan import Plan


def open_model(
    text: str,
    weights: Path | None = None,
    shape: str | None = None,
    normalize: str | None = None,
    *,
    batch: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Loaded:
    """The network that MODEL, --weights, --input and --normalize describe; its notes are told."""
    from secateurs.models import load

    loaded = load(text, weights=weights, input_shape=input_shape(shape, batch), normalize=normalize, seed=seed)
    if progress is not None:
        for note in loaded.notes:
            progress.say(note)
    return loaded


def typed(context: typer.Context, parameter: str) -> bool:
    """Whether the command line gives this parameter."""
    return str(context.get_parameter_source(parameter)).endswith("COMMANDLINE")


def check_same(
    context: typer.Context, chosen: Mapping[str, Any], held: Mapping[str, Any], output: Path, again: str
) -> None:
    """Nothing, if the options that were typed beside --resume are those that the run in ``output`` was started with.

    ``chosen``: values by name as job.json spells them; ``held``: those of the run; ``again``: the command that takes
    all of them from the folder.

    Raises:
        DataError: one is another.
    """
    parameters = {"input": "shape"}
    for name, value in chosen.items():
        if typed(context, parameters.get(name, name)) and value != held.get(name):
            raise DataError(
                f"The run in {output} was started with {name} {held.get(name)!r}, now it is {value!r}. Resume with "
                f"'{again}', or choose another folder."
            )


def open_plan(path: Path) -> Plan:
    """The plan in a file."""
    from secateurs.plan import Plan

    return Plan.load(path)


def writable(path: Path) -> Path:
    """``path``, where a file can be written.

    Raises:
        DataError: its folder does not exist, or it is a folder itself.
    """
    if path.is_dir():
        raise DataError(f"-o {path} is a folder. Give the name of the file to write.")
    if not path.absolute().parent.is_dir():
        raise DataError(
            f"Folder {path.absolute().parent} does not exist. Make it first, or choose another place for -o."
        )
    return path
