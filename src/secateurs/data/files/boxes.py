"""Images with boxes, whatever file says so: checked, and brought to the network's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.data.files.pictures import Placing, opened
from secateurs.data.files.records import SKIP
from secateurs.errors import DataError

_SLACK = 1.5
"""Pixels by which a box may be outside: sizes are rounded in many files."""


@dataclass(frozen=True)
class Boxed:
    """One image. ``boxes``: float [n, 4] as x1, y1, x2, y2 in its own pixels, or as shares of its sides where
    ``shares``; ``labels``: int [n] from 0; ``crowd``: bool [n]; ``where``: places in the annotations, for messages."""

    path: Path
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    where: Sequence[str]
    shares: bool = False


class BoxRecords:
    """Images with boxes. A target is a dict of ``boxes`` [n, 4] as x1, y1, x2, y2 in the network's pixels, ``labels``
    [n]
    and ``iscrowd`` [n]."""

    def __init__(self, images: Sequence[Boxed], fit: Placing) -> None:
        self.images, self.fit = images, fit

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One image and its boxes."""
        one = self.images[row]
        image = opened(one.path)
        x, y = self.fit.scales(image.width, image.height)
        boxes = _checked(one, image.width, image.height) * np.array([x, y, x, y])
        target: dict[str, Any] = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.from_numpy(one.labels.astype(np.int64)),
            "iscrowd": torch.from_numpy(one.crowd.astype(np.int64)),
        }
        return self.fit.image(image), target


def _checked(one: Boxed, width: int, height: int) -> np.ndarray:
    """The boxes in pixels, cut at the borders.

    Raises:
        DataError: one is outside the image.
    """
    sides = np.array([width, height, width, height], dtype=np.float64)
    boxes = one.boxes * sides if one.shares else one.boxes
    outside = (boxes < -_SLACK).any(1) | (boxes > sides + _SLACK).any(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)
    outside |= ~np.isfinite(boxes).all(1)
    if outside.any():
        place = int(np.flatnonzero(outside)[0])
        more = f" ({int(outside.sum())} of {len(boxes)} boxes of this image)" if outside.sum() > 1 else ""
        raise DataError(
            f"{one.where[place]} has a box {[round(float(side), 1) for side in boxes[place]]} (x1, y1, x2, y2) that "
            f"is not inside its image {one.path} of {width} x {height} pixels{more}. Correct the annotation: was the "
            f"image resized, or are the sides given in another order? {SKIP}"
        )
    return np.clip(boxes, 0, sides)


def require_images(images: Sequence[Boxed], source: str, looked_in: Path) -> None:
    """Nothing, if some of the images are there: single ones that are missing are told when they are read.

    Raises:
        DataError: none is.
    """
    if images and not any(one.path.is_file() for one in images[:256]):
        raise DataError(
            f"{source} names {len(images)} images, and none of them is in {looked_in} (the first is "
            f"{images[0].path.name}). Put the images there, or name their folder with ?images=DIR."
        )
