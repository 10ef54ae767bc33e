"""One opened data source: its training and test rows, and how they are split further."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.data.augmentation import Augmentation
from secateurs.data.datasets import wrap
from secateurs.data.decoding import MOST_PIXELS, EncodedImages, Sizing
from secateurs.data.digits import Digits
from secateurs.data.imagefolder import class_names, find_parts, open_folder
from secateurs.data.images import Data, Images, Source
from secateurs.data.named import Named
from secateurs.data.parquet import open_parquet
from secateurs.errors import DataError
from secateurs.models.loaded import Loaded
from secateurs.progress import Progress

# The held-out test part of a source without its own is the same for every run seed: a network that was trained
# under one seed must never be tested on its training images under another.
_TEST_SEED = 20_231


@dataclass(frozen=True)
class Parts:
    """Training and test rows of one opened data set, before they are split further."""

    train: Source
    train_rows: np.ndarray
    test: Source
    test_rows: np.ndarray
    augmentation: Augmentation
    notes: tuple[str, ...] = ()


def open_parts(data: Named, loaded: Loaded) -> Parts:
    """The source, in the form that the network takes."""
    options, (channels, height, width) = data.options, loaded.input_shape
    if data.kind == "factory":
        return wrapped(*data.made, loaded, options)
    if channels not in (1, 3):
        raise DataError(
            f"{loaded.name} takes {channels} channels; images have 1 or 3. Give loaders of your own: file.py:factory."
        )
    sizing = Sizing(height, width, channels, options.get("fit", "auto"), _pixels(options))
    pad = max(1, round(min(height, width) / 8))
    if data.kind == "digits":
        digits = Digits(sizing)
        train, test = _hold_out(digits.labels, 1 / 3)
        return Parts(digits, train, digits, test, _augmentation(options, max(1, pad // 2), flip=False))
    augmentation = _augmentation(options, pad, flip=True)
    if data.kind == "parquet":
        return _open_parquet(data.where, sizing, options, augmentation)
    return _open_imagefolder(Path(data.where), sizing, options, augmentation, loaded.classes)


def _open_parquet(where: str, sizing: Sizing, options: dict[str, str], augmentation: Augmentation) -> Parts:
    paths = where.split(",")
    if len(paths) != 2 or not all(paths):
        raise DataError(f"Data parquet:{where} names {len(paths)} files, not two. Write parquet:TRAIN,TEST.")
    image, label, most = options.get("image"), options.get("label"), int(options.get("unpack", 0)) << 30
    train, test = (open_parquet(Path(path), sizing, image=image, label=label, most=most) for path in paths)
    return Parts(train, np.arange(len(train)), test, np.arange(len(test)), augmentation)


def _pixels(options: dict[str, str]) -> int:
    return int(options["pixels"]) * 1_000_000 if "pixels" in options else MOST_PIXELS


def _open_imagefolder(
    folder: Path, sizing: Sizing, options: dict[str, str], augmentation: Augmentation, outputs: int | None
) -> Parts:
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
        return Parts(train, kept, train, held, augmentation, notes)
    test = open_folder(test_folder, sizing, names)
    return Parts(train, np.arange(len(train)), test, np.arange(len(test)), augmentation, notes)


def wrapped(train: Any, test: Any, loaded: Loaded, options: dict[str, str]) -> Parts:
    """The user's own loaders, data sets or lists of batches."""
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
    return Parts(first, np.arange(len(first.labels)), second, np.arange(len(second.labels)), augmentation)


def split(parts: Parts, loaded: Loaded, seed: int, sizes: tuple[int, int], name: str) -> Data:
    """The four splits; ``sizes``: images for calibration and validation, at most."""
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


def without_broken(parts: Parts, progress: Progress) -> Parts:
    """The same without images that cannot be decoded, with a note of how many there are."""
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


def check_labels(source: Source, rows: np.ndarray, outputs: int | None, name: str) -> None:
    """Nothing, if every label is one of the network's outputs.

    Raises:
        DataError: one is not; the message names it.
    """
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


def _augmentation(options: dict[str, str], pad: int, *, flip: bool) -> Augmentation:
    return Augmentation(int(options.get("pad", pad)), bool(int(options.get("flip", flip))))
