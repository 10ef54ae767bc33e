"""What the engine computes, as frozen values: layers of integers, and a network of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateurs.errors import ExportError

MULTIPLIER_BITS, MOST_SHIFT = 24, 57
ADD_SHIFT, ADD_BITS = 24, 27
MOST_KERNEL, MOST_CHANNELS = 8, 4096
"""Sides of a kernel and input channels that the stream's fields hold."""


@dataclass(frozen=True)
class LayerShape:
    """A layer apart from its numbers; ``padding``: top, left; ``groups``: of channels that meet only their filters."""

    filters: int
    channels: int
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    input_hw: tuple[int, int]
    output_hw: tuple[int, int]
    groups: int = 1


@dataclass(frozen=True)
class Addition:
    """What is added to a layer's result: ``own`` and ``other`` weigh both, in units of 2^-24."""

    own: int
    other: int
    zero_other: int
    zero: int
    low: int = 0
    high: int = 255


@dataclass(frozen=True)
class IntegerLayer:
    """A convolution of unsigned bytes by signed ones (a linear layer is one of a single position).

    ``weight`` int8 [filters, channels, kh, kw]; ``bias`` int64 [filters]; ``multiplier`` and ``shift`` int64 [filters]:
    a sum is worth ``multiplier * 2**-shift`` of the result's units; ``zero_in``, ``zero``: zero points; ``low``,
    ``high``: bounds of the result; ``input_hw``; ``padding``: top, left; ``output_hw``; ``order``: of filters, in
    which they are cut into blocks; ``groups``: of channels that meet only their filters, the other weights are zeros;
    ``mean``: it is one over the image, whose weights are ones.
    """

    name: str
    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    input_hw: tuple[int, int]
    output_hw: tuple[int, int]
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    zero_in: int = 0
    zero: int = 0
    low: int = 0
    high: int = 255
    add: Addition | None = None
    order: tuple[int, ...] = ()
    groups: int = 1
    mean: bool = False

    def __post_init__(self) -> None:
        filters, channels, height, width = self.weight.shape
        if self.stride not in (1, 2):
            raise ExportError(f"Layer {self.name} has stride {self.stride}; the engine has 1 and 2. {_ELSEWHERE}")
        if max(height, width) > MOST_KERNEL:
            raise ExportError(
                f"Layer {self.name} has a kernel of {height}×{width}; the engine's are at most {MOST_KERNEL}×"
                f"{MOST_KERNEL}. {_ELSEWHERE}"
            )
        if channels > MOST_CHANNELS:
            raise ExportError(
                f"Layer {self.name} has {channels} input channels, the stream has room for {MOST_CHANNELS}. Prune it."
            )
        if self.order and sorted(self.order) != list(range(filters)):
            raise ExportError(f"The order of the filters of layer {self.name} is not one of its {filters}.")

    @property
    def geometry(self) -> LayerShape:
        """Without its numbers."""
        filters, channels, rows, columns = self.weight.shape
        return LayerShape(
            filters, channels, (rows, columns), self.stride, self.padding, self.input_hw, self.output_hw, self.groups
        )

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense layer."""
        return int(self.weight.size) // self.groups * self.output_hw[0] * self.output_hw[1]


_ELSEWHERE = "Run it on the processor, or choose another target."


@dataclass(frozen=True)
class Move:
    """Bytes put elsewhere, without arithmetic: every ``steps``-th row and column, then channels of zero around them."""

    source: str
    output: str
    steps: tuple[int, int] = (1, 1)
    front: int = 0
    behind: int = 0
    zero: int = 0

    def apply(self, x: np.ndarray) -> np.ndarray:
        """[..., channels, H, W] as it lies then."""
        taken = x[..., :: self.steps[0], :: self.steps[1]]
        around = [(0, 0)] * (x.ndim - 3) + [(self.front, self.behind), (0, 0), (0, 0)]
        return np.pad(taken, around, constant_values=self.zero)


@dataclass(frozen=True)
class LayerStep:
    """A layer in its network: the tensors that it reads, adds and writes."""

    layer: IntegerLayer
    source: str
    output: str
    added: str | None = None


@dataclass(frozen=True)
class IntegerNetwork:
    """Layers and moves in the order in which they run.

    ``input``, ``output``: names of tensors; ``shape`` of the input [channels, H, W]; quantised by ``scale`` and
    ``zero``; the output is ``output_scale * (byte - output_zero)``, of ``output_shape`` for one sample.
    """

    steps: tuple[LayerStep | Move, ...]
    input: str
    output: str
    shape: tuple[int, int, int]
    scale: float
    zero: int
    output_scale: float
    output_zero: int
    output_shape: tuple[int, ...]

    @property
    def layers(self) -> tuple[IntegerLayer, ...]:
        """Those that the engine runs."""
        return tuple(step.layer for step in self.steps if isinstance(step, LayerStep))


def fixed_point(scales: Sequence[float] | np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(multiplier, shift) of float32 factors, without an error: a float's 24 bits are the multiplier.

    Raises:
        ExportError: a factor is no positive number in range.
    """
    found = []
    for scale in np.asarray(scales, dtype=np.float32).ravel().tolist():
        mantissa, exponent = math.frexp(scale)
        shift = MULTIPLIER_BITS - exponent
        if not (math.isfinite(scale) and scale > 0 and shift >= 1):
            raise ExportError(f"Layer {name} is requantised by {scale:g}, which must be above 0 and below 2^23.")
        shrunk = max(0, shift - MOST_SHIFT)  # so little that nothing but zero comes out
        found.append((int(mantissa * 2**MULTIPLIER_BITS) >> min(shrunk, 63), min(shift, MOST_SHIFT)))
    values = np.array(found, dtype=np.int64).reshape(-1, 2)
    return values[:, 0], values[:, 1]
