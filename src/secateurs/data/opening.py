"""From a data source's text (``digits``, ``parquet:TRAIN,TEST`` …) to its four splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.data.augmentation import Augmentation
from secateurs.data.datasets import wrap
from secateurs.data.decoding import EncodedImages, Sizing
from secateurs.data.digits import Digits
from secateurs.data.imagefolder import class_names, find_parts, open_folder
from secateurs.data.images import Data, Images, Source
from secateurs.data.parquet import open_parquet
from secateurs.errors import DataError
from secateurs.models.external import call_factory, import_factory
from secateurs.models.loading import Loaded
from secateurs.progress import Progress, silent

FORMS = "digits, parquet:TRAIN,TEST, imagefolder:DIR, file.py:factory or package.module:factory"
# The held-out test part of a source without its own is the same for every run seed: a network that was trained
# under one seed must never be tested on its training images under another.
_TEST_SEED = 20_231


@dataclass(frozen=True)
class _Parts:
    """Training and test rows of one opened data set, before they are split further."""

    train: Source
    train_rows: np.ndarray
    test: Source
    test_rows: np.ndarray
    augmentation: Augmentation
    notes: tuple[str, ...] = ()


def open_data(
    text: str,
    loaded: Loaded,
    *,
    seed: int = 0,
    classes: str | Sequence[int] | None = None,
    sizes: tuple[int, int] = (1024, 1024),
    progress: Progress = silent,
) -> Data:
    """The data set that ``text`` names, in the form that the network takes.

    Calibration and validation come from the training part, by ``seed``; nothing is decoded before it is used.

    Args:
        text: one of the forms ``digits``, ``parquet:TRAIN,TEST``, ``imagefolder:DIR``, ``file.py:factory``, with
            options behind a question mark: ``fit=crop|stretch`` (see :class:`~secateurs.data.decoding.Sizing`),
            ``broken=skip``, ``flip=0|1``, ``pad=N``; parquet: ``image=COLUMN``, ``label=COLUMN``; imagefolder:
            ``classes=FILE``.
        loaded: gives the input shape, the preprocessing and the number of classes.
        seed: of the split.
        classes: ``"present"``: only the outputs of classes that occur count, in accuracy, scores and training; or
                the indices of those that do.
        sizes: images for calibration and for validation; at most a quarter and a tenth of the training part.
        progress: shown while ``broken=skip`` looks through all images.

    Raises:
        DataError: unknown form or option, missing or damaged files, labels out of range.
    """
    name, _, query = text.partition("?")
    options = _options(query, text)
    parts = _open(name, options, loaded)
    if options.get("broken") == "skip":
        parts = _without_broken(parts, progress)
    for source, rows, part in ((parts.train, parts.train_rows, "training"), (parts.test, parts.test_rows, "test")):
        _check_labels(source, rows, loaded.classes, f"{name} ({part} part)")
    data = _split(parts, loaded, seed, sizes, name)
    return replace(data, classes=_chosen(classes, parts, loaded.classes), notes=parts.notes)


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
    parts = _wrapped(train, test, loaded, {})
    for source, rows, part in ((parts.train, parts.train_rows, "training"), (parts.test, parts.test_rows, "test")):
        _check_labels(source, rows, loaded.classes, f"the {part} data")
    data = _split(parts, loaded, seed, sizes, "loaders")
    return replace(data, classes=_chosen(classes, parts, loaded.classes), notes=parts.notes)


def _open(name: str, options: dict[str, str], loaded: Loaded) -> _Parts:
    channels, height, width = loaded.input_shape
    if channels not in (1, 3) and (name == "digits" or name.startswith(("parquet:", "imagefolder:"))):
        raise DataError(
            f"{loaded.name} takes {channels} channels; images have 1 or 3. Give loaders of your own: file.py:factory."
        )
    sizing = Sizing(height, width, channels, options.get("fit", "auto"))
    pad = max(1, round(min(height, width) / 8))
    if name == "digits":
        digits = Digits(sizing)
        train, test = _hold_out(digits.labels, 1 / 3)
        return _Parts(digits, train, digits, test, _augmentation(options, max(1, pad // 2), flip=False))
    augmentation = _augmentation(options, pad, flip=True)
    kind, _, where = name.partition(":")
    if kind == "parquet":
        return _open_parquet(where, sizing, options, augmentation)
    if kind == "imagefolder":
        return _open_imagefolder(Path(where), sizing, options, augmentation, loaded.classes)
    if not where:
        raise DataError(f"Unknown data {name!r}. Give one of: {FORMS}.")
    made = call_factory(import_factory(name, "Data"), {}, f"Data {name!r}")
    if not isinstance(made, (list, tuple)) or len(made) != 2:
        raise DataError(f"Data {name!r} returned {type(made).__name__}, not two loaders. Return (train, test).")
    return _wrapped(made[0], made[1], loaded, options)


def _open_parquet(where: str, sizing: Sizing, options: dict[str, str], augmentation: Augmentation) -> _Parts:
    paths = where.split(",")
    if len(paths) != 2 or not all(paths):
        raise DataError(f"Data parquet:{where} names {len(paths)} files, not two. Write parquet:TRAIN,TEST.")
    columns = {"image": options.get("image"), "label": options.get("label")}
    train, test = (open_parquet(Path(path), sizing, **columns) for path in paths)
    return _Parts(train, np.arange(len(train)), test, np.arange(len(test)), augmentation)


def _open_imagefolder(
    folder: Path, sizing: Sizing, options: dict[str, str], augmentation: Augmentation, outputs: int | None
) -> _Parts:
    train_folder, test_folder = find_parts(folder)
    listing = options.get("classes")
    names = class_names(train_folder, None if listing is None else Path(listing))
    notes: tuple[str, ...] = ()
    if outputs is not None and outputs != len(names):
        notes = (
            f"{folder} has {len(names)} classes but the network has {outputs} outputs; the folders in the order of "
            f"their names are taken as classes 0 to {len(names) - 1}. Give the network's own list as ?classes=FILE "
            f"if that is wrong.",
        )
    train = open_folder(train_folder, sizing, names)
    if test_folder is None:
        kept, held = _hold_out(train.labels, 1 / 5)
        return _Parts(train, kept, train, held, augmentation, notes)
    test = open_folder(test_folder, sizing, names)
    return _Parts(train, np.arange(len(train)), test, np.arange(len(test)), augmentation, notes)


def _wrapped(train: Any, test: Any, loaded: Loaded, options: dict[str, str]) -> _Parts:
    channels, height, width = loaded.input_shape
    sizing = Sizing(height, width, channels)
    first, second = wrap(train, sizing, "training"), wrap(test, sizing, "test")
    for source, part in ((first, "training"), (second, "test")):
        held = source.fetch(np.array([0]))
        if held.dtype.is_floating_point and tuple(held.shape[1:]) != loaded.input_shape:
            raise DataError(
                f"The {part} data gives inputs of shape {tuple(held.shape[1:])}, {loaded.name} takes "
                f"{loaded.input_shape}. Change the data set's transform, or give --input."
            )
    augmentation = _augmentation(options, max(1, round(min(height, width) / 8)), flip=True)
    return _Parts(first, np.arange(len(first.labels)), second, np.arange(len(second.labels)), augmentation)


def _split(parts: _Parts, loaded: Loaded, seed: int, sizes: tuple[int, int], name: str) -> Data:
    order = np.random.default_rng(seed).permutation(parts.train_rows)
    held = min(sizes[1], max(1, len(order) // 10))
    if len(order) < 2:
        raise DataError(f"Data {name} has {len(order)} training images; at least 2 are needed. Give more.")
    validation, train = order[:held], order[held:]
    calibration = train[: min(sizes[0], max(1, len(order) // 4))]

    def images(source: Source, rows: np.ndarray, part: str) -> Images:
        return Images(source, rows, loaded.preprocessing, parts.augmentation, part)

    return Data(
        images(parts.train, train, "train"),
        images(parts.train, calibration, "calibration"),
        images(parts.train, validation, "validation"),
        images(parts.test, parts.test_rows, "test"),
        name=name,
    )


def _hold_out(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out for the test: the same fraction of every class, always the same rows."""
    generator = np.random.default_rng(_TEST_SEED)
    held = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held.append(rows[: int(len(rows) * fraction + 0.5)])
    test = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), test), test


def _without_broken(parts: _Parts, progress: Progress) -> _Parts:
    notes = parts.notes
    kept = []
    for source, rows, part in ((parts.train, parts.train_rows, "training"), (parts.test, parts.test_rows, "test")):
        if isinstance(source, EncodedImages):
            with progress.task(f"look through the {part} images", len(rows)) as task:
                bad: list[int] = []
                for start in range(0, len(rows), 64):
                    bad += source.broken(rows[start : start + 64])
                    task.advance(len(rows[start : start + 64]), f"{len(bad)} broken")
            if bad:
                notes = (*notes, f"{len(bad)} of {len(rows)} {part} images are broken and left out.")
                rows = np.setdiff1d(rows, bad)
        kept.append(rows)
    return replace(parts, train_rows=kept[0], test_rows=kept[1], notes=notes)


def _check_labels(source: Source, rows: np.ndarray, outputs: int | None, name: str) -> None:
    labels = source.labels[rows]
    bad = np.flatnonzero((labels < 0) | (labels >= (outputs if outputs is not None else np.iinfo(np.int64).max)))
    if len(bad) == 0:
        return
    row = int(rows[bad[0]])
    place = source.where(row) if isinstance(source, EncodedImages) else f"Row {row} of {name}"
    raise DataError(
        f"{place} has label {int(labels[bad[0]])}, but the network has {outputs} outputs, so labels must be 0 to "
        f"{(outputs or 1) - 1} ({len(bad)} of {len(labels)} rows of {name} are out of range). "
        f"Give the data that the network was trained for, or a network with more outputs."
    )


def _chosen(classes: str | Sequence[int] | None, parts: _Parts, outputs: int | None) -> tuple[int, ...] | None:
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


def _augmentation(options: dict[str, str], pad: int, *, flip: bool) -> Augmentation:
    return Augmentation(int(options.get("pad", pad)), bool(int(options.get("flip", flip))))


def _options(query: str, text: str) -> dict[str, str]:
    known = {"fit": ("crop", "stretch", "auto"), "broken": ("skip", "refuse"), "flip": ("0", "1")}
    free = ("pad", "image", "label", "classes")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key not in known and key not in free:
            raise DataError(f"Data {text!r} has no option {key!r}. There are {', '.join([*known, *free])}.")
        if key in known and value not in known[key]:
            raise DataError(f"Data {text!r}: option {key}={value!r} must be one of {', '.join(known[key])}.")
        if key == "pad" and not value.isdigit():
            raise DataError(f"Data {text!r}: option pad={value!r} must be a number of pixels.")
        options[key] = value
    return options
