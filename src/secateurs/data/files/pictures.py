"""Images of files as a network takes them, with what belongs to their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secateurs.data.decoding import MOST_PIXELS
from secateurs.data.decoding import opened as opened_file
from secateurs.data.files.records import SKIP
from secateurs.errors import DataError, shortened
from secateurs.models.preprocessing import Preprocessing

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Placing:
    """How an image becomes ``height`` x ``width``.

    ``how``: ``stretch`` scales both sides; ``letterbox`` scales both alike, puts the image top left and fills the rest
    with ``fill``; ``bgr``: the channels are turned round.
    """

    height: int
    width: int
    channels: int
    preprocessing: Preprocessing
    how: str = "stretch"
    fill: int = 114
    bgr: bool = False

    def scales(self, width: int, height: int) -> tuple[float, float]:
        """By how much x and y of an image of this size grow."""
        x, y = self.width / width, self.height / height
        return (min(x, y), min(x, y)) if self.how == "letterbox" else (x, y)

    def image(self, image: Image.Image) -> Tensor:
        """float32 [channels, height, width]."""
        image = image.convert("L" if self.channels == 1 else "RGB")
        pixels = self._placed(image, Image.Resampling.BILINEAR, self.fill)
        array = np.asarray(pixels, dtype=np.uint8)
        array = array[:, :, None] if self.channels == 1 else array[:, :, ::-1] if self.bgr else array
        return self.preprocessing.normalize(array[None].copy())[0]

    def mask(self, image: Image.Image, outside: int) -> Tensor:
        """int64 [height, width] of a mask of indices."""
        placed = self._placed(image, Image.Resampling.NEAREST, outside)
        return torch.from_numpy(np.array(placed, dtype=np.int64))

    def _placed(self, image: Image.Image, resampling: Image.Resampling, fill: int) -> Image.Image:
        x, y = self.scales(image.width, image.height)
        size = (max(1, round(image.width * x)), max(1, round(image.height * y)))
        scaled = image if image.size == size else image.resize(size, resampling)
        if size == (self.width, self.height):
            return scaled
        whole = Image.new(image.mode, (self.width, self.height), fill if image.mode != "RGB" else (fill, fill, fill))
        whole.paste(scaled, (0, 0))
        return whole


def opened(path: Path, what: str = "Image") -> Image.Image:
    """A decoded image.

    Raises:
        DataError: the file is missing or cannot be decoded.
    """
    try:
        image = opened_file(path)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS / 1e6:.0f} million")
        image.load()
        return image
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} does not exist. {SKIP}") from error
    except Exception as error:
        reason = shortened(str(error).partition("<_io")[0]) or type(error).__name__
        raise DataError(f"{what} {path} cannot be decoded as an image ({reason}). {SKIP}") from error


def images_in(folder: Path) -> list[Path]:
    """The images below a folder, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
