"""Random crops and flips of whole batches at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Pad by ``pad`` black pixels, crop back at a random place, mirror left-right with probability a half.

    The random numbers come from one generator, so equal generators give equal batches.
    """

    pad: int = 0
    flip: bool = False

    def apply(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """uint8 [batch, H, W, channels] -> the same shape and kind."""
        count, height, width, _ = pixels.shape
        top = torch.randint(0, 2 * self.pad + 1, (count, 1), generator=generator)
        left = torch.randint(0, 2 * self.pad + 1, (count, 1), generator=generator)
        mirrored = (
            torch.rand(count, 1, generator=generator) < 0.5 if self.flip else torch.zeros(count, 1, dtype=torch.bool)
        )
        rows = top + torch.arange(height)
        forward = torch.arange(width)
        columns = left + torch.where(mirrored, forward.flip(0), forward)
        if self.pad:
            pixels = torch.nn.functional.pad(pixels, (0, 0, self.pad, self.pad, self.pad, self.pad))
        image = torch.arange(count)[:, None, None]
        return pixels[image, rows[:, :, None], columns[:, None, :]]


UNCHANGED = Augmentation()
"""Neither crop nor flip."""
