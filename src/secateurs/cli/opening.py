"""From the options of a verb to the model, the data and the places that the work needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from secateurs.cli.options import input_shape
from secateurs.errors import DataError
from secateurs.files import require_regular
from secateurs.plan import Plan
from secateurs.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from secateurs.data import Data, Named
    from secateurs.models import Loaded


def open_model(
    text: str,
    weights: Path | None = None,
    shape: str | None = None,
    normalize: str | None = None,
    *,
    sized: Named | Plan | None = None,
    batch: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Loaded:
    """The network that MODEL, --weights, --input and --normalize describe; its notes are told.

    ``sized``: data or a plan, by which the input's shape is known where neither the model nor --input says it.
    """
    from secateurs.models import load

    loaded = load(
        text,
        weights=weights,
        input_shape=input_shape(shape, batch),
        otherwise=None if sized is None else _shape_of(sized, progress),
        normalize=normalize,
        seed=seed,
    )
    if progress is not None:
        for note in loaded.notes:
            progress.say(note)
    return loaded


def open_planned(
    text: str,
    plan: Plan,
    weights: Path | None = None,
    shape: str | None = None,
    normalize: str | None = None,
    *,
    data: str | None = None,
    batch: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[nn.Module, Any]:
    """The network that a plan is for, and an example of its inputs.

    It is an image where --input, --data or the network says of which shape, or the plan was made with one; else the
    example is as the plan was made with: tokens, several inputs, mappings.

    Raises:
        StructureError: the plan was made with an object of which it stores the class only.
    """
    from secateurs.models import load_module
    from secateurs.structure.examples import image_shape, stored_example

    if shape is not None or data is not None or image_shape(plan) is not None:
        sized = open_source(data) or plan
        loaded = open_model(text, weights, shape, normalize, sized=sized, batch=batch, seed=seed, progress=progress)
        return loaded.module, loaded.example()
    module, notes = load_module(text, weights=weights, seed=seed)
    if progress is not None:
        for note in notes:
            progress.say(note)
    return module, stored_example(plan)


def open_source(text: str | None) -> Named | None:
    """The data that --data names, not opened yet."""
    from secateurs.data import Named

    return None if text is None else Named(text)


def open_images(
    source: Named,
    loaded: Loaded,
    *,
    classes: str,
    normalize: str | None,
    seed: int,
    progress: Progress,
    task: str | None = None,
) -> Data:
    """The data's images for a network, or its samples for a task; where --normalize does nothing, a note says so."""
    from secateurs.data import open_data, with_unused_told
    from secateurs.data.tasks import asked_task

    asked = asked_task(task, None, None)
    fed = None if asked is None else asked.fed(loaded.example(), loaded.module)
    images = open_data(source, loaded, seed=seed, classes=classes, task=fed, progress=progress)
    return images if normalize is None else with_unused_told(images)


def _shape_of(sized: Named | Plan, progress: Progress | None) -> Callable[[nn.Module], tuple[int, ...]]:
    """How the input's shape is found; the data's is told, for the network may have been trained for another."""
    from secateurs.data.sizes import input_shape as by_data
    from secateurs.structure.examples import image_shape

    def by_plan(module: nn.Module) -> tuple[int, ...]:
        shape = image_shape(sized) if isinstance(sized, Plan) else None
        if shape is None:
            raise DataError("The plan does not hold the input's shape. Give it with --input 1,3,HEIGHT,WIDTH.")
        return shape[1], shape[2], shape[3]

    def told(module: nn.Module) -> tuple[int, ...]:
        assert not isinstance(sized, Plan)
        shape = by_data(sized, module)
        if progress is not None:
            kind = "images" if len(shape) == 3 else "samples"
            progress.say(
                f"Input 1,{','.join(map(str, shape))}, as the {kind} of {sized.name} are; --input sets another."
            )
        return shape

    return by_plan if isinstance(sized, Plan) else told


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
    parameters = {"input": ("shape",), "keep": ("keep", "only")}
    for name, value in chosen.items():
        if any(typed(context, one) for one in parameters.get(name, (name,))) and value != held.get(name):
            raise DataError(
                f"The run in {output} was started with {name} {held.get(name)!r}, now it is {value!r}. Resume with "
                f"'{again}', or choose another folder."
            )


def open_plan(path: Path) -> Plan:
    """The plan in a file."""
    return Plan.load(path)


def writable(path: Path) -> Path:
    """``path``, where a file can be written.

    Raises:
        DataError: its folder does not exist, or it is a folder itself.
    """
    if path.is_dir():
        raise DataError(f"-o {path} is a folder. Give the name of the file to write.")
    require_regular(path, "-o")
    if not path.absolute().parent.is_dir():
        raise DataError(
            f"Folder {path.absolute().parent} does not exist. Make it first, or choose another place for -o."
        )
    return path
