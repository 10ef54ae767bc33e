"""What happens to pixels before they reach a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.errors import DataError


@dataclass(frozen=True)
class Preprocessing:
    """``(pixel / scale - mean) / std`` per channel, for pixels 0-255.

    A single mean or std serves all channels.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0

    def normalize(self, pixels: Tensor | np.ndarray) -> Tensor:
        """uint8 [batch, H, W, channels] -> float32 [batch, channels, H, W]."""
        values = torch.as_tensor(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        mean = torch.tensor(self.mean, dtype=torch.float64) * self.scale
        gain = 1.0 / (torch.tensor(self.std, dtype=torch.float64) * self.scale)
        view = (1, -1, 1, 1)
        return values.sub_(mean.float().view(view)).mul_(gain.float().view(view))

    def for_channels(self, channels: int) -> Preprocessing:
        """The same where its values fit ``channels``; else one mean and one std for all, the averages of its values."""
        if all(len(values) in (1, channels) for values in (self.mean, self.std)):
            return self
        mean, std = sum(self.mean) / len(self.mean), sum(self.std) / len(self.std)
        return Preprocessing((mean,), (std,), self.scale)

    def check(self, channels: int) -> None:
        """Nothing, if there is one value for all channels or one for each.

        Raises:
            DataError: there are others.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise DataError(
                    f"Preprocessing has {len(values)} {name} values, but the input has {channels} channels. Give "
                    f"--normalize with one value, or one per channel."
                )

    @property
    def text(self) -> str:
        """In words, such as ``pixel / 255``."""
        if self == Preprocessing():
            return "pixel / 255"
        name = next((name for name, value in _NAMED.items() if value == self), None)
        if name is not None:
            return name
        mean, std = (",".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{mean}/{std}" if self.scale == 255 else f"{mean}/{std} on pixels over {self.scale:g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What :meth:`to_dict` gave."""
        return cls(tuple(values["mean"]), tuple(values["std"]), float(values["scale"]))


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTERED = Preprocessing((128.0,), (128.0,), 1.0)
"""(pixel - 128) / 128, as the TensorFlow networks take it."""

RAW = Preprocessing(scale=1.0)
"""Pixels 0-255 as they are."""
_UNIT = Preprocessing()
_NAMED = {
    "imagenet": IMAGENET,
    "cifar10": IMAGENET,
    "centered": CENTERED,
    "unit": _UNIT,
    "none": _UNIT,
    "0-1": _UNIT,
    "0-255": RAW,
}
CHOICES = (
    "imagenet; none, which is pixel / 255 as torchvision's ToTensor gives it (also 0-1 or unit); 0-255; centered, "
    "which is (pixel - 128) / 128; or MEAN/STD on the 0-1 scale, such as 0.5/0.25 or "
    "0.485,0.456,0.406/0.229,0.224,0.225: the numbers of the Normalize step that the network was trained with"
)
"""What can be given, in words."""


def parse_normalize(text: str) -> Preprocessing:
    """Read ``--normalize``: a name, or ``MEAN/STD`` on a 0-1 scale such as ``0.5,0.5,0.5/0.25,0.25,0.25``.

    Names: ``imagenet``; ``cifar10`` (ImageNet's values, as the built-in networks use them); ``centered``, that is
    (pixel - 128) / 128; ``none``, ``0-1`` or ``unit``, that is pixel / 255; ``0-255``, pixels as they are.

    Raises:
        DataError: neither a known name nor two lists of numbers, or a std that is not above zero.
    """
    if text in _NAMED:
        return _NAMED[text]
    hint = f"Give {CHOICES}."
    left, slash, right = text.partition("/")
    try:
        mean = tuple(float(part) for part in left.split(","))
        std = tuple(float(part) for part in right.split(","))
    except ValueError:
        raise DataError(f"--normalize {text!r} is not understood. {hint}") from None
    finite = all(map(math.isfinite, (*mean, *std)))
    if not slash or not finite or min(std) <= 0 or (len(mean) != len(std) and 1 not in (len(mean), len(std))):
        raise DataError(f"--normalize {text!r} is not a list of means and a list of positive stds. {hint}")
    return Preprocessing(mean, std)


def as_preprocessing(normalize: str | Preprocessing) -> Preprocessing:
    """``normalize`` from Python: a text that :func:`parse_normalize` reads, or the value itself.

    Raises:
        DataError: it is neither.
    """
    if isinstance(normalize, Preprocessing):
        return normalize
    if isinstance(normalize, str):
        return parse_normalize(normalize)
    raise DataError(f"normalize= is a {type(normalize).__name__}. Give {CHOICES}.")
