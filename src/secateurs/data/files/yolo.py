"""YOLO's form: a YAML file that names folders of images, and a text file of boxes beside every image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.data.files.boxes import Boxed, BoxRecords, require_images
from secateurs.data.files.pictures import Placing, images_in
from secateurs.data.files.records import FileParts, parts_of
from secateurs.errors import DataError, why
from secateurs.files import read_text
from secateurs.models.external import optional


def open_yolo(file: Path, fit: Placing, options: Mapping[str, str]) -> FileParts:
    """The images with boxes that a ``data.yaml`` names.

    Raises:
        DataError: the file is missing or damaged, a folder has no images, or a line of boxes is wrong.
    """
    yaml = optional("yaml", f"Data yolo:{file}", "tasks")
    if not file.is_file():
        raise DataError(f"File {file} does not exist. Check the path; the form is yolo:data.yaml.")
    try:
        held = yaml.safe_load(read_text(file))
        names = held.get("names", held.get("nc"))
        classes = names if isinstance(names, int) else len(names)
        train, test = held["train"], held.get("val", held.get("test"))
        root = file.parent if held.get("path") is None else _under(file.parent, str(held["path"]))
    except Exception as error:
        raise DataError(
            f"{file} is not of YOLO's form ({why(error)}). It needs train, val and names: folders of images, and the "
            f"classes' names."
        ) from error
    first, notes = _images(train, root, classes, file)
    second, more = ([], ()) if test is None else _images(test, root, classes, file)
    held_out = BoxRecords(second, fit) if second else None
    return parts_of(BoxRecords(first, fit), held_out, (*notes, *more))


def _under(folder: Path, text: str) -> Path:
    """A path of the file, which Ultralytics' own reader looks for beside the file, too."""
    path = Path(text)
    return path if path.is_absolute() else folder / path


def _images(given: Any, root: Path, classes: int, file: Path) -> tuple[list[Boxed], tuple[str, ...]]:
    found: list[Path] = []
    for text in given if isinstance(given, list) else [given]:
        place = _under(root, str(text))
        place = place if place.exists() else _under(file.parent, str(text).removeprefix("../"))
        if place.is_dir():
            found += images_in(place)
        elif place.is_file():
            found += [_under(place.parent, line) for line in read_text(place).split()]
        else:
            raise DataError(
                f"{file} names {text}, and neither {_under(root, str(text))} nor {place} exists. Correct path:."
            )
    if not found:
        raise DataError(f"{file} names {given}, where there are no images. Put them there.")
    images = [_boxed(path, classes) for path in found]
    require_images(images, str(file), found[0].parent)
    lacking = sum(not _labels(path).is_file() for path in found)
    if lacking == len(found):
        raise DataError(
            f"None of the {len(found)} images of {given} has a file of boxes: {_labels(found[0])} and the others are "
            f"missing. They lie in labels/ where the images lie in images/."
        )
    note = f"{lacking} of {len(found)} images of {given} have no file of boxes and count as empty."
    return images, (note,) if lacking else ()


def _labels(image: Path) -> Path:
    """The file of an image's boxes."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _boxed(image: Path, classes: int) -> Boxed:
    file = _labels(image)
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    boxes, labels = [], []
    for number, words in rows:
        label, values = _line(words, f"Line {number} of {file}")
        if not 0 <= label < classes:
            raise DataError(
                f"Line {number} of {file} has class {label}, and there are {classes}: 0 to {classes - 1}. Correct it, "
                f"or names: in the YAML file."
            )
        labels.append(label)
        boxes.append(_corners(values))
    return Boxed(
        image,
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.zeros(len(labels), dtype=bool),
        [f"Line {number} of {file}" for number, _ in rows],
        shares=True,
    )


def _line(words: Sequence[str], place: str) -> tuple[int, list[float]]:
    try:
        label, values = int(float(words[0])), [float(word) for word in words[1:]]
    except ValueError as error:
        raise DataError(
            f"{place} is {' '.join(words)[:60]!r}, which are no numbers. It must be: class x y width height."
        ) from error
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise DataError(
            f"{place} has {len(words)} numbers. It must be: class x y width height, or class and a polygon."
        )
    return label, values


def _corners(values: Sequence[float]) -> list[float]:
    """x1, y1, x2, y2 of a box given by centre and size, or around a polygon."""
    if len(values) == 4:
        x, y, width, height = values
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
