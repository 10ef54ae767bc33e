"""The inputs that a layer's outputs are made of, at some output positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx


@dataclass(frozen=True)
class Geometry:
    """A convolution's window (or a linear layer's: ``kernel`` is empty) and its ``groups``."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, node: fx.Node, weight: Tensor) -> Geometry:
        """The geometry of an ``aten.conv2d`` or ``aten.linear`` call."""
        if weight.ndim == 2:
            return cls(())

        def pair(place: int, default: int) -> tuple[int, int]:
            value: Any = node.args[place] if len(node.args) > place else default
            values = [value] if isinstance(value, int) else list(value)
            return values[0], values[-1]

        groups = node.args[6] if len(node.args) > 6 else 1
        assert isinstance(groups, int)
        return cls((weight.shape[2], weight.shape[3]), pair(3, 1), pair(4, 0), pair(5, 1), groups)


def draw_positions(output: Tensor, geometry: Geometry, count: int, generator: torch.Generator) -> Tensor:
    """Up to ``count`` output positions of one image (for all images of the batch), int64 [positions]."""
    places = output.shape[2:].numel() if geometry.kernel else output.shape[1:-1].numel()
    if places <= count:
        return torch.arange(places)
    return torch.randperm(places, generator=generator)[:count].sort().values


def outputs_at(output: Tensor, geometry: Geometry, positions: Tensor) -> Tensor:
    """Outputs [channels, batch x positions] of a convolution [batch, channels, H, W] or linear map [batch, ..., n]."""
    if geometry.kernel:
        return output.flatten(2)[:, :, positions].transpose(0, 1).flatten(1)
    return output.reshape(len(output), -1, output.shape[-1])[:, positions].flatten(0, 1).t()


def inputs_at(inputs: Tensor, output_width: int, geometry: Geometry, positions: Tensor) -> Tensor:
    """Unfolded inputs [groups, inputs of a group, batch x positions], in the order of a weight's flattened columns."""
    if not geometry.kernel:
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])[:, positions].flatten(0, 1).t()[None]
    (high, wide), (down, right) = geometry.kernel, geometry.padding
    padded = F.pad(inputs, (right, right, down, down)) if down or right else inputs
    top = positions.div(output_width, rounding_mode="floor") * geometry.stride[0]
    left = positions % output_width * geometry.stride[1]
    rows = top[:, None] + torch.arange(high) * geometry.dilation[0]
    columns = left[:, None] + torch.arange(wide) * geometry.dilation[1]
    # [batch, channels, positions, high, wide]
    patches = padded[:, :, rows[:, :, None], columns[:, None, :]]
    unfolded = patches.permute(1, 3, 4, 0, 2).reshape(inputs.shape[1] * high * wide, -1)
    return unfolded.reshape(geometry.groups, -1, unfolded.shape[1])
