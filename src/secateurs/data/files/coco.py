"""COCO's form: a folder of images and a JSON file of annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.data.files.boxes import Boxed, BoxRecords, require_images
from secateurs.data.files.pictures import Placing
from secateurs.data.files.records import FileParts, parts_of
from secateurs.errors import DataError, why
from secateurs.files import read_bytes, read_json

_MOST_BYTES = 1 << 30
"""Of an annotation file; those of COCO have half of it."""

_TRAIN, _TEST = ("train", "training"), ("val", "valid", "validation", "test")
_FORM = (
    "DIR/annotations/instances_train2017.json with DIR/train2017/, the same for val, or one JSON file with DIR/images/"
)


def open_coco(folder: Path, fit: Placing, options: Mapping[str, str]) -> FileParts:
    """The images with boxes of a folder.

    Args:
        folder: with the annotations.
        fit: how images reach the network.
        options: ``train`` and ``test`` name annotation files, ``images`` the folder of all images, ``labels=ids`` keeps
            the categories' own numbers instead of 0 to K - 1 in their order.

    Raises:
        DataError: there are no annotations, they are damaged, or their images are missing.
    """
    if not folder.is_dir():
        raise DataError(f"COCO folder {folder} does not exist. Check the path; the form is coco:DIR.")
    train, test = _files(folder, options)
    first, notes = _read(train, folder, options)
    second, more = ((), ()) if test is None else _read(test, folder, options)
    held = None if test is None else BoxRecords(second, fit)
    return parts_of(BoxRecords(first, fit), held, (*notes, *more))


def _files(folder: Path, options: Mapping[str, str]) -> tuple[Path, Path | None]:
    """Annotation files of the training and of the test part."""
    if "train" in options:
        tested = options.get("test")
        return folder / options["train"], None if tested is None else folder / tested
    every = sorted(path for depth in ("*.json", "*/*.json") for path in folder.glob(depth))
    boxes = [path for path in every if not path.name.startswith(("captions", "person_keypoints", "panoptic", "stuff"))]
    train, test = (next((path for path in boxes if _is_of(path, names)), None) for names in (_TRAIN, _TEST))
    if train is None:
        left = [path for path in boxes if path != test]
        train, test = (left[0], test) if left else (test, None)
    if train is None:
        raise DataError(f"COCO folder {folder} has no annotations (*.json). Its form is {_FORM}.")
    return train, test


def _is_of(path: Path, names: Sequence[str]) -> bool:
    text = f"{path.parent.name} {path.stem}".lower().replace("_", " ")
    return any(word.startswith(name) for word in text.split() for name in names)


def _read(file: Path, folder: Path, options: Mapping[str, str]) -> tuple[list[Boxed], tuple[str, ...]]:
    held = _json(file)
    try:
        where = _images_folder(file, folder, options, held["images"])
        own_numbers = options.get("labels") == "ids"
        numbers = {
            int(one["id"]): int(one["id"]) if own_numbers else place
            for place, one in enumerate(sorted(held["categories"], key=lambda one: int(one["id"])))
        }
        by_image: dict[Any, list[dict[str, Any]]] = {one["id"]: [] for one in held["images"]}
        flat = 0
        for one in held["annotations"]:
            if one["image_id"] not in by_image:
                raise DataError(
                    f"Annotation {one['id']} of {file} is of image {one['image_id']}, which the file does not list. "
                    "Repair "
                    f"the file: every image_id must be an id among its images."
                )
            if one["category_id"] not in numbers:
                raise DataError(
                    f"Annotation {one['id']} of {file} has category {one['category_id']}, which it does not list."
                )
            _, _, width, height = map(float, one["bbox"])
            flat += width == 0 or height == 0
            if width != 0 and height != 0:
                by_image[one["image_id"]].append(one)
        images = [_boxed(where / one["file_name"], by_image[one["id"]], numbers, file) for one in held["images"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"Annotation file {file} is not of COCO's form ({why(error)}). It needs images (id, file_name), categories "
            f"(id) and annotations (id, image_id, category_id, bbox as x, y, width, height)."
        ) from error
    require_images(images, f"Annotation file {file}", where)
    return images, (f"{flat} boxes of {file} without area are left out.",) if flat else ()


def _boxed(path: Path, annotations: Sequence[Mapping[str, Any]], numbers: Mapping[int, int], file: Path) -> Boxed:
    corners = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in annotations)]
    return Boxed(
        path,
        np.array(corners, dtype=np.float64).reshape(-1, 4),
        np.array([numbers[one["category_id"]] for one in annotations], dtype=np.int64),
        np.array([bool(one.get("iscrowd", 0)) for one in annotations], dtype=bool),
        [f"Annotation {one['id']} of {file}" for one in annotations],
    )


def _images_folder(file: Path, folder: Path, options: Mapping[str, str], images: Sequence[Mapping[str, Any]]) -> Path:
    """Where the images lie: the first likely folder that has the first of them."""
    if "images" in options:
        return folder / options["images"]
    part = file.stem.removeprefix("instances_").removeprefix("_annotations.coco")
    likely = [folder / part, folder / "images" / part, folder / "images", file.parent, file.parent / "images", folder]
    names = [str(one["file_name"]) for one in images[:16]]
    return next((one for one in likely if any((one / name).is_file() for name in names)), likely[0])


def _json(file: Path) -> Any:
    try:
        return read_json(read_bytes(file, most=_MOST_BYTES))
    except (OSError, ValueError) as error:
        raise DataError(f"Annotation file {file} cannot be read ({why(error)}). Copy it again.") from error
