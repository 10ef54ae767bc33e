"""Folders of images, one sub-folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from secateurs.data.decoding import EncodedImages, Sizing
from secateurs.errors import DataError, why
from secateurs.files import read_text

_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
_TRAIN, _TEST = ("train", "training"), ("test", "val", "valid", "validation")


def find_parts(folder: Path) -> tuple[Path, Path | None]:
    """The training and the test folder; (folder, None) where its sub-folders are the classes themselves.

    Raises:
        DataError: the folder does not exist, or has a training part without a test part or the reverse.
    """
    if not folder.is_dir():
        raise DataError(f"Image folder {folder} does not exist. Check the path; the form is imagefolder:DIR.")
    train = next((folder / name for name in _TRAIN if (folder / name).is_dir()), None)
    test = next((folder / name for name in _TEST if (folder / name).is_dir()), None)
    if train is not None and test is not None:
        return train, test
    if train is None and test is None:
        return folder, None
    there = train or test
    raise DataError(
        f"Image folder {folder} has {there.name if there else ''}/ alone. "
        f"Put the images into train/CLASS/ and test/CLASS/, or into CLASS/ without either."
    )


def class_names(folder: Path, listing: Path | None = None) -> list[str]:
    """Names of the classes in label order: the lines of ``listing``, or else the sub-folders' sorted names.

    Raises:
        DataError: there are no classes, or the listing cannot be read.
    """
    if listing is None:
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not found:
            raise DataError(f"Image folder {folder} has no sub-folders. Put the images of each class into CLASS/.")
        return found
    try:
        return [line.strip() for line in read_text(listing).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Class list {listing} cannot be read ({why(error)}). Give a text file, a name per line."
        ) from error


def open_folder(folder: Path, sizing: Sizing, classes: Sequence[str]) -> EncodedImages:
    """The images below ``folder``; a sub-folder's label is its place in ``classes``.

    Raises:
        DataError: a sub-folder is not among ``classes``, or there are no images.
    """
    index = {name: label for label, name in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        if entry.name not in index:
            raise DataError(
                f"Class folder {entry} is not among the {len(index)} known classes ({', '.join(classes[:5])} ...). "
                f"Rename it, or give a list with a name per line as ?classes=FILE."
            )
        files = sorted(path for path in entry.rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
        paths += files
        labels += [index[entry.name]] * len(files)
    if not paths:
        raise DataError(f"Image folder {folder} holds no images ({', '.join(sorted(_ENDINGS))}). Check the path.")
    return EncodedImages(paths, np.array(labels, dtype=np.int64), sizing, lambda row: f"Image {paths[row]}")
