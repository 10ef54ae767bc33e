"""From a data source's text (``digits``, ``parquet:TRAIN,TEST`` …) to its four splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from secateurs.data.files.opening import open_files
from secateurs.data.images import Data, Images, gives_pixels
from secateurs.data.named import FILES, Named
from secateurs.data.parts import Parts, check_labels, open_parts, split, without_broken, wrapped
from secateurs.data.samples import Samples, SampleSource, wrap_samples
from secateurs.data.tasks.task import Task, classification
from secateurs.errors import DataError
from secateurs.models.loaded import Loaded
from secateurs.models.preprocessing import CHOICES, Preprocessing
from secateurs.progress import Progress, silent


def open_data(
    text: str | Named,
    loaded: Loaded,
    *,
    seed: int = 0,
    classes: str | Sequence[int] | None = None,
    sizes: tuple[int, int] = (1024, 1024),
    task: Task | None = None,
    progress: Progress = silent,
) -> Data:
    """The data set that ``text`` names, in the form that the network takes.

    Calibration and validation come from the training part, by ``seed``; nothing is decoded before it is used.

    Args:
        text: one of the forms ``digits``, ``parquet:TRAIN,TEST``, ``imagefolder:DIR``, ``coco:DIR``,
        ``yolo:data.yaml``,
            ``segmentation:DIR``, ``csv:FILE``, ``audio:DIR``, ``file.py:factory``, with options behind a question mark:
            ``fit=crop|stretch`` (see :class:`~secateurs.data.decoding.Sizing`), ``broken=skip``, ``flip=0|1``,
            ``pad=N``; parquet: ``image=COLUMN``, ``label=COLUMN``; imagefolder: ``classes=FILE``; docs/tasks.md has
            those of the others.
        loaded: gives the input shape, the preprocessing and the number of classes.
        seed: of the split.
        classes: ``"present"``: only the outputs of classes that occur count, in accuracy, scores and training; or
                the indices of those that do.
        sizes: images for calibration and for validation; at most a quarter and a tenth of the training part.
        task: what the network is for; None: what a factory says, else classification.
        progress: shown while ``broken=skip`` looks through all images.

    Raises:
        DataError: unknown form or option, missing or damaged files, labels out of range.
    """
    named = text if isinstance(text, Named) else Named(text)
    if named.kind in FILES:
        return _from_files(named, loaded, task, seed, sizes, progress)
    task = _of_factory(named, loaded, task)
    if task is not None and not task.labels_images:
        if named.kind != "factory":
            raise DataError(
                f"Data {named.name} gives images with one label each, and task {task.kind} wants more. Give loaders "
                f"whose batches its loss and metric take: file.py:factory."
            )
        return from_batches(*named.made, task, seed=seed, sizes=sizes, name=named.name)
    name, parts = named.name, open_parts(named, loaded)
    if named.options.get("broken") == "skip":
        parts = without_broken(parts, progress)
    for source, rows, part in ((parts.train, parts.train_rows, "training"), (parts.test, parts.test_rows, "test")):
        check_labels(source, rows, loaded.classes, f"{name} ({part} part)")
    return _finished(parts, loaded, seed, sizes, name, classes)


def _of_factory(named: Named, loaded: Loaded, task: Task | None) -> Task | None:
    """The task that was asked for, else what a factory says, else classification of what is no image."""
    chosen = named.task if task is None and named.kind == "factory" else task
    if chosen is None and loaded.given is not None:
        chosen = classification()
    return None if chosen is None else chosen.fed(loaded.example(), loaded.module)


def _from_files(
    named: Named, loaded: Loaded, task: Task | None, seed: int, sizes: tuple[int, int], progress: Progress
) -> Data:
    parts, chosen = open_files(named, loaded, task, progress)
    train, test = (parts.train, parts.train_rows), (parts.test, parts.test_rows)
    return _of_samples(train, test, chosen, seed=seed, sizes=sizes, name=named.name, notes=parts.notes)


def from_loaders(
    train: Any,
    test: Any,
    loaded: Loaded,
    *,
    seed: int = 0,
    classes: str | Sequence[int] | None = None,
    sizes: tuple[int, int] = (1024, 1024),
) -> Data:
    """The user's own loaders, data sets or lists of batches as :class:`Data`.

    Raises:
        DataError: they are of another kind, empty, or have labels out of range.
    """
    parts = wrapped(train, test, loaded, {})
    for source, rows, part in ((parts.train, parts.train_rows, "training"), (parts.test, parts.test_rows, "test")):
        check_labels(source, rows, loaded.classes, f"the {part} data")
    return _finished(parts, loaded, seed, sizes, "loaders", classes)


def from_batches(
    train: Any,
    test: Any,
    task: Task,
    *,
    seed: int = 0,
    sizes: tuple[int, int] = (1024, 1024),
    name: str = "loaders",
) -> Data:
    """The user's own loaders, data sets or lists of batches of any nest, for a task.

    Raises:
        DataError: they are of another kind, or empty.
    """
    source, held_out = wrap_samples(train, "training"), wrap_samples(test, "test")
    parts = ((source, np.arange(len(source))), (held_out, np.arange(len(held_out))))
    return _of_samples(*parts, task, seed=seed, sizes=sizes, name=name)


def _of_samples(
    train: tuple[SampleSource, np.ndarray],
    test: tuple[SampleSource, np.ndarray],
    task: Task,
    *,
    seed: int,
    sizes: tuple[int, int],
    name: str,
    notes: tuple[str, ...] = (),
) -> Data:
    """The four splits of (source, rows) of both parts."""
    source, rows = train
    order = np.random.default_rng(seed).permutation(rows)
    if len(order) < 2:
        raise DataError(f"Data {name} has {len(order)} training samples; at least 2 are needed. Give more.")
    held = min(sizes[1], max(1, len(order) // 10))
    calibration = order[held : held + min(sizes[0], max(1, len(order) // 4))]
    return Data(
        Samples(source, order[held:], "train"),
        Samples(source, calibration, "calibration"),
        Samples(source, order[:held], "validation"),
        Samples(*test, "test"),
        name=name,
        notes=notes,
        asked=task,
    )


def given(
    data: str | Named | Data | tuple[Any, Any],
    loaded: Loaded,
    *,
    seed: int = 0,
    normalize: str | Preprocessing | None = None,
    task: Task | None = None,
    progress: Progress = silent,
) -> Data:
    """The four splits, from a source's text, from (train, test) loaders, or as they are.

    ``normalize``: as the user gave it, which ``loaded`` has already; where it cannot be applied, that is told;
    ``task``: what the network is for, None for classification.

    Raises:
        DataError: it is none of these, or cannot be opened.
    """
    if isinstance(data, Data):
        if normalize is not None:
            raise DataError("The given Data has its own preprocessing, so normalize= would do nothing. Leave it out.")
        return data if task is None else replace(data, asked=task)
    if isinstance(data, (str, Named)):
        opened = open_data(data, loaded, seed=seed, task=task, progress=progress)
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        if task is not None and not task.labels_images:
            opened = from_batches(data[0], data[1], task, seed=seed)
        else:
            opened = from_loaders(data[0], data[1], loaded, seed=seed)
    else:
        raise DataError(
            f"data= is a {type(data).__name__}. Give a source's text, a Data, or a pair (train, test) of loaders."
        )
    return opened if normalize is None else with_unused_told(opened)


def with_unused_told(data: Data) -> Data:
    """The same, with a note where --normalize was given for inputs that are ready."""
    if any(isinstance(part, Images) and gives_pixels(part.source) for part in (data.train, data.test)):
        return data
    note = "The data gives floats, which are taken as they are: --normalize was not applied."
    return replace(data, notes=(*data.notes, note))


def _finished(
    parts: Parts,
    loaded: Loaded,
    seed: int,
    sizes: tuple[int, int],
    name: str,
    classes: str | Sequence[int] | None,
) -> Data:
    """The splits of what was opened, once it is known how its pixels reach the network."""
    notes = parts.notes
    if not loaded.pixels_told and (gives_pixels(parts.train) or gives_pixels(parts.test)):
        if name != "digits":
            raise DataError(
                f"{loaded.name} does not say how pixels reach it, and {name} gives images. Say it with --normalize "
                f"(normalize=): {CHOICES}."
            )
        notes = (*notes, "Pixels of digits reach the network as pixel / 255; --normalize feeds them otherwise.")
    data = split(parts, loaded, seed, sizes, name)
    return replace(data, classes=_chosen(classes, parts, loaded.classes), notes=notes)


def _chosen(classes: str | Sequence[int] | None, parts: Parts, outputs: int | None) -> tuple[int, ...] | None:
    if classes is None or classes == "all":
        return None
    present = np.union1d(parts.train.labels[parts.train_rows], parts.test.labels[parts.test_rows])
    if classes == "present":
        if len(present) < 2:
            raise DataError("Only one class occurs in the data, so no two can be told apart. Give --classes all.")
        return None if len(present) == outputs else tuple(int(label) for label in present)
    if isinstance(classes, str):
        raise DataError(f"--classes {classes!r} is not understood. Give 'present' or 'all'.")
    chosen = tuple(sorted({int(label) for label in classes}))
    if not chosen or chosen[0] < 0 or (outputs is not None and chosen[-1] >= outputs):
        raise DataError(f"Classes {chosen[:5]} must lie in 0 to {(outputs or 1) - 1}. Give indices of outputs.")
    return chosen
