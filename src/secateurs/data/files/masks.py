"""Images with a mask of class indices each: ``images/`` and ``masks/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from secateurs.data.files.pictures import Placing, images_in, opened
from secateurs.data.files.records import SKIP, FileParts, parts_of
from secateurs.errors import DataError

_TRAIN, _TEST = ("train", "training"), ("val", "valid", "validation", "test")
_MASKS = ("masks", "labels", "annotations")
_FORM = (
    "DIR/images/*.jpg with DIR/masks/*.png of the same names, in both or above both folders train/ and val/ where "
    "there are parts"
)


@dataclass(frozen=True)
class MaskRecords:
    """Images and masks. ``classes``: outputs of the network, None where that is not known; ``ignore``: label of pixels
    that do not count."""

    pairs: Sequence[tuple[Path, Path]]
    fit: Placing
    classes: int | None
    ignore: int

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, row: int) -> tuple[Tensor, Tensor]:
        """One image, and class indices [height, width]."""
        picture, file = self.pairs[row]
        image, mask = opened(picture), opened(file, "Mask")
        if image.size != mask.size:
            raise DataError(
                f"Mask {file} has {mask.width} x {mask.height} pixels, its image {picture} {image.width} x "
                f"{image.height}. "
                f"A mask has the size of its image. {SKIP}"
            )
        return self.fit.image(image), self.fit.mask(self._indices(mask, file), self.ignore)

    def _indices(self, mask: Image.Image, file: Path) -> Image.Image:
        """A mask of numbers; of a palette the indices."""
        if mask.mode not in ("L", "P", "I", "I;16", "1"):
            raise DataError(
                f"Mask {file} has colours ({mask.mode}), not class indices. Save one channel, or a palette, with the "
                f"index of the class in every pixel. {SKIP}"
            )
        values = np.asarray(mask)
        known = np.unique(values[values != self.ignore])
        if self.classes is not None and len(known) and known[-1] >= self.classes:
            raise DataError(
                f"Mask {file} has class {int(known[-1])}, and the network has {self.classes} outputs: 0 to "
                f"{self.classes - 1}, and {self.ignore} for pixels that do not count. Say another such label with "
                f"?ignore=N. {SKIP}"
            )
        return Image.fromarray(values.astype(np.int32), mode="I")


def open_masks(folder: Path, fit: Placing, classes: int | None, options: Mapping[str, str]) -> FileParts:
    """The images and masks of a folder.

    Raises:
        DataError: a folder is missing, or an image has no mask.
    """
    if not folder.is_dir():
        raise DataError(f"Folder {folder} does not exist. Check the path; the form is segmentation:DIR.")
    ignore = int(options.get("ignore", 255))
    found = [_pairs(*place) for place in _places(folder)]
    records = [MaskRecords(pairs, fit, classes, ignore) for pairs in found]
    return parts_of(records[0], records[1] if len(records) > 1 else None)


def _places(folder: Path) -> list[tuple[Path, Path]]:
    """(images, masks) of the training part, and of the test part where there is one."""
    found: list[tuple[Path, Path]] = []
    for names in (_TRAIN, _TEST):
        for name in names:
            inner = _both(folder / "images" / name, [folder / one / name for one in _MASKS])
            inner = inner or _both(folder / name / "images", [folder / name / one for one in _MASKS])
            if inner is not None:
                found.append(inner)
                break
    whole = _both(folder / "images", [folder / one for one in _MASKS])
    if not found and whole is not None:
        found = [whole]
    if not found:
        raise DataError(f"Folder {folder} has no images/ and masks/. Its form is {_FORM}.")
    return found


def _both(images: Path, masks: Sequence[Path]) -> tuple[Path, Path] | None:
    there = next((one for one in masks if one.is_dir()), None)
    return (images, there) if images.is_dir() and there is not None else None


def _pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    pictures = images_in(images)
    if not pictures:
        raise DataError(f"Folder {images} holds no images. Its form is {_FORM}.")
    by_name = {path.relative_to(masks).with_suffix("").as_posix(): path for path in images_in(masks)}
    found: list[tuple[Path, Path]] = []
    lacking: list[Path] = []
    for picture in pictures:
        name = picture.relative_to(images).with_suffix("").as_posix()
        mask = next((by_name[one] for one in (name, f"{name}_mask", f"{name}_labelIds") if one in by_name), None)
        if mask is None:
            lacking.append(picture)
        else:
            found.append((picture, mask))
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(pictures)} images in {images} have no mask in {masks}: {lacking[0].name} and "
            f"others look for a mask of their own name. Add the masks, or remove the images."
        )
    return found
