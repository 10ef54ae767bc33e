"""From ``coco:DIR``, ``yolo:FILE``, ``segmentation:DIR``, ``csv:FILE`` or ``audio:DIR`` to samples for a task."""

from __future__ import annotations

from pathlib import Path

from secateurs.data.files.coco import open_coco
from secateurs.data.files.masks import open_masks
from secateurs.data.files.pictures import Placing
from secateurs.data.files.records import FileParts, without_broken
from secateurs.data.files.sound import open_sounds
from secateurs.data.files.table import open_table
from secateurs.data.files.yolo import open_yolo
from secateurs.data.named import Named
from secateurs.data.tasks.named import task as named_task
from secateurs.data.tasks.task import Task
from secateurs.errors import DataError
from secateurs.models.loaded import Loaded
from secateurs.models.preprocessing import CHOICES
from secateurs.progress import Progress

IMAGES = ("coco", "yolo", "segmentation")
"""Forms that always give images."""
_LETTERBOXED = ("coco", "yolo")


def open_files(named: Named, loaded: Loaded, task: Task | None, progress: Progress) -> tuple[FileParts, Task]:
    """The samples, and the task that they are for: the given one, or what the form says by itself.

    Raises:
        DataError: files are missing or damaged, the network takes something else, or nothing says what the task is.
    """
    parts = _opened(named, loaded, task)
    if named.options.get("broken") == "skip":
        parts = without_broken(parts, progress)
    chosen = _of_form(named, parts) if task is None else task
    return parts, chosen.fed(loaded.example(), loaded.module)


def _opened(named: Named, loaded: Loaded, task: Task | None) -> FileParts:
    options, kind = named.options, named.kind
    if kind == "csv":
        fit = _fit(named, loaded) if loaded.given is None else None
        return open_table(named.where, fit, options, numbers=task is not None and not task.answers_classes)
    if kind == "audio":
        return open_sounds(Path(named.where), loaded.input_shape, options)
    fit = _fit(named, loaded)
    if kind == "segmentation":
        classes = loaded.outputs[0] if loaded.outputs is not None and len(loaded.outputs) == 3 else None
        return open_masks(Path(named.where), fit, classes, options)
    return (open_coco if kind == "coco" else open_yolo)(Path(named.where), fit, options)


def _fit(named: Named, loaded: Loaded) -> Placing:
    if loaded.given is not None or loaded.input_shape[0] not in (1, 3):
        raise DataError(
            f"Data {named.name} gives images of 1 or 3 channels, and {loaded.name} takes {list(loaded.input_shape)}. "
            "Give "
            f"loaders of your own: file.py:factory."
        )
    if not loaded.pixels_told:
        raise DataError(
            f"{loaded.name} does not say how pixels reach it, and {named.name} gives images. Say it with --normalize "
            f"(normalize=): {CHOICES}."
        )
    channels, height, width = loaded.input_shape
    how = named.options.get("fit", "letterbox" if named.kind in _LETTERBOXED else "stretch")
    bgr = named.options.get("order", "rgb") == "bgr"
    return Placing(height, width, channels, loaded.preprocessing, how, int(named.options.get("fill", 114)), bgr)


def _of_form(named: Named, parts: FileParts) -> Task:
    """The task of samples that say it themselves.

    Raises:
        DataError: boxes do not: how a network finds and learns them is its own.
    """
    if named.kind in _LETTERBOXED:
        raise DataError(
            f"Data {named.name} gives boxes, and only you know the loss of your detector and how its outputs become "
            "boxes. "
            f"Give the task: --task file.py:make, a function that returns secateurs.task('detection', loss=..., "
            "decode=...)."
        )
    if named.kind == "segmentation":
        return named_task("segmentation", ignore=int(named.options.get("ignore", 255)))
    if named.kind == "csv":
        _, target = parts.train.records.read(int(parts.train_rows[0]))
        return named_task("regression" if target.is_floating_point() else "classification")
    return named_task("classification")
