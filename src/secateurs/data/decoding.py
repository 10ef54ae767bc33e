"""From encoded images to uint8 arrays of one size, each decoded once."""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secateurs.errors import DataError, shortened
from secateurs.files import require_regular

_CHUNK = 512
_CACHE_BYTES = 6 << 30
_SAMPLED = 64
MOST_PIXELS = 89_478_485
"""Pillow's own bound: a quarter of a gigabyte in colour."""
_LARGE_PIXELS = 1 << 24
_PHOTOGRAPHS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "PPM", "TIFF", "MPO", "JPEG2000", "AVIF", "ICO")
_opening = threading.Lock()
WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Sizing:
    """How an image becomes ``height`` x ``width``.

    An image of that very size stays as it is. ``fit``: ``"crop"`` scales the short side to 1/0.875 of the wanted
    size (bilinear) and cuts the centre out, the usual evaluation; ``"stretch"`` scales both sides directly, for
    files whose images are squares of one size already; ``"auto"`` takes ``stretch`` for such files. ``pixels``: larger
    images are refused.
    """

    height: int
    width: int
    channels: int = 3
    fit: str = "auto"
    pixels: int = MOST_PIXELS

    def shape(self, image: Image.Image) -> np.ndarray:
        """uint8 [height, width, channels] of a decoded image."""
        image = image.convert("L" if self.channels == 1 else "RGB")
        wanted = (self.width, self.height)
        if image.size != wanted and self.fit == "crop":
            scale = max(round(self.width / 0.875) / image.width, round(self.height / 0.875) / image.height)
            scaled = (max(self.width, round(image.width * scale)), max(self.height, round(image.height * scale)))
            if scaled[0] * scaled[1] > self.pixels:
                raise ValueError(
                    f"of {image.width} x {image.height} pixels, it would be scaled to {scaled[0]} x {scaled[1]}"
                )
            if image.size != scaled:
                image = image.resize(scaled, Image.Resampling.BILINEAR)
            left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
            image = image.crop((left, top, left + self.width, top + self.height))
        elif image.size != wanted:
            image = image.resize(wanted, Image.Resampling.BILINEAR)
        array = np.asarray(image, dtype=np.uint8)
        return array[:, :, None] if self.channels == 1 else array


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of photographs: others (EPS, say) would start programs of their own."""
    Image.init()
    return tuple(name for name in _PHOTOGRAPHS if name in Image.OPEN)


def opened(item: bytes | Path) -> Image.Image:
    """An image of which the header was read, whatever its size; a pipe is not waited for.

    Raises:
        Exception: what Pillow raises of what is no image.
    """
    if not isinstance(item, bytes):
        require_regular(item, "Image")
    with _opening:  # Pillow's bound is one for all, and whoever decodes checks the size here
        held, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(item) if isinstance(item, bytes) else item, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = held


class EncodedImages:
    """Encoded images with labels; decoded by several threads on first use and then kept as uint8.

    Args:
        items: bytes or paths, one per row.
        labels: int64 [rows].
        sizing: the wanted form; ``fit="auto"`` is settled by looking at some headers.
        where: names row ``i`` in messages.
    """

    def __init__(
        self,
        items: Sequence[bytes | Path],
        labels: np.ndarray,
        sizing: Sizing,
        where: Callable[[int], str],
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self.items = items
        self.labels = labels
        self.where = where
        self.sizing = sizing
        self.sizing = self._settle(sizing)
        image_bytes = sizing.height * sizing.width * sizing.channels
        self._capacity = cache_bytes // image_bytes
        self._slots = np.full(len(items), -1, dtype=np.int64)
        self._chunks: list[np.ndarray] = []
        self._used = 0
        self._lock, self._large = threading.Lock(), threading.Lock()

    def __len__(self) -> int:
        return len(self.items)

    def fetch(self, rows: np.ndarray) -> Tensor:
        """uint8 [rows, H, W, channels].

        Raises:
            DataError: an image cannot be decoded; the message names it.
        """
        rows = np.asarray(rows, dtype=np.int64)
        result = np.empty((len(rows), self.sizing.height, self.sizing.width, self.sizing.channels), dtype=np.uint8)
        fresh: list[int] = []
        for position, row in enumerate(rows):
            slot = self._slots[row]
            if slot < 0:
                fresh.append(position)
            else:
                result[position] = self._chunks[slot // _CHUNK][slot % _CHUNK]
        for position, pixels in zip(fresh, self._decode_many(rows[fresh]), strict=True):
            result[position] = pixels
            self._keep(int(rows[position]), pixels)
        return torch.from_numpy(result)

    def broken(self, rows: Iterable[int]) -> list[int]:
        """Those of ``rows`` that cannot be decoded."""
        bad = []
        for row in rows:
            try:
                self.fetch(np.array([row]))
            except DataError:
                bad.append(int(row))
        return bad

    def _decode_many(self, rows: np.ndarray) -> Iterable[np.ndarray]:
        if len(rows) < 8:
            return [self._decode(int(row)) for row in rows]
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(self._decode, map(int, rows)))

    def _decode(self, row: int) -> np.ndarray:
        with self._open(row) as image, self._alone(image):
            try:
                return self.sizing.shape(image)
            except Exception as error:
                raise self._broken(row, error) from error

    def _alone(self, image: Image.Image) -> AbstractContextManager[Any]:
        """Large images are decoded one after the other: two at once would take gigabytes."""
        return self._large if image.width * image.height > _LARGE_PIXELS else nullcontext()

    def _open(self, row: int) -> Image.Image:
        item = self.items[row]
        try:
            image = opened(item)
        except Exception as error:
            raise self._broken(row, error) from error
        if image.width * image.height > self.sizing.pixels:
            size = f"it has {image.width} x {image.height} pixels; ?pixels=N lets N million be decoded"
            image.close()
            raise self._broken(row, ValueError(size))
        return image

    def _broken(self, row: int, error: Exception) -> DataError:
        reason = shortened(str(error).partition("<_io")[0]) or type(error).__name__
        return DataError(
            f"{self.where(row)} cannot be decoded as an image ({reason}). "
            f"Repair or remove it, or add ?broken=skip to the data to leave such images out."
        )

    def _keep(self, row: int, pixels: np.ndarray) -> None:
        with self._lock:
            if self._slots[row] >= 0 or self._used >= self._capacity:
                return
            if self._used // _CHUNK == len(self._chunks):
                self._chunks.append(np.empty((_CHUNK, *pixels.shape), dtype=np.uint8))
            self._chunks[self._used // _CHUNK][self._used % _CHUNK] = pixels
            self._slots[row] = self._used
            self._used += 1

    def _settle(self, sizing: Sizing) -> Sizing:
        if sizing.fit != "auto":
            return sizing
        sizes = set()
        for row in np.unique(np.linspace(0, len(self.items) - 1, _SAMPLED).astype(int)) if len(self.items) else ():
            try:
                with self._open(int(row)) as image:
                    sizes.add(image.size)
            except DataError:
                continue
        uniform = len(sizes) == 1 and all(width == height for width, height in sizes)
        return replace(sizing, fit="stretch" if uniform else "crop")
