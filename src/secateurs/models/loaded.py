"""A network with everything that is needed to feed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.models.preprocessing import Preprocessing

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Loaded:
    """A network with everything that is needed to feed it.

    ``module``: in evaluation mode; ``input_shape``: (channels, height, width), or of a network that takes no images
    its first input without the batch; ``given``: of such a network the inputs of one sample; ``outputs``: shape of
    its output
    without the batch, None where it is no single tensor; ``source``: JSON-able, :func:`rebuild` takes it;
    ``notes``: what was deduced or assumed, for the user; ``pixels_told``: whether ``preprocessing`` was given or comes
    with the network, and is no guess; ``random``: whether the weights are known to be random.
    """

    module: nn.Module
    name: str
    input_shape: tuple[Any, ...]
    preprocessing: Preprocessing
    outputs: tuple[int, ...] | None
    source: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pixels_told: bool = True
    random: bool = False
    given: Any = None

    @property
    def classes(self) -> int | None:
        """Number of classes, None where the output is not one vector per image."""
        return self.outputs[0] if self.outputs is not None and len(self.outputs) == 1 else None

    @property
    def mean(self) -> tuple[float, ...]:
        """Means that are subtracted, on the 0-1 scale when ``scale`` is 255."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviations to divide by."""
        return self.preprocessing.std

    @property
    def scale(self) -> float:
        """What pixels 0-255 are divided by first."""
        return self.preprocessing.scale

    def example(self, batch: int = 1) -> Any:
        """A fixed random input [batch, channels, height, width], or inputs of another kind."""
        if self.given is not None:
            return pytree.tree_map_only(torch.Tensor, lambda x: torch.cat([x] * batch), self.given)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.input_shape, generator=generator)


def called(module: nn.Module, example: Any) -> Any:
    """What a network answers to an example in any of its forms."""
    if isinstance(example, Mapping):
        return module(**example)
    return module(*example) if isinstance(example, tuple) else module(example)


def own_example(module: nn.Module) -> tuple[Any, Any]:
    """(shape of an image, None) or (shape of the first input, all inputs), where a network has an example of its inputs
    as Lightning's have: ``example_input_array``; (None, None) where it has none."""
    example = getattr(module, "example_input_array", None)
    first = next((leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor)), None)
    if first is None or first.ndim < 2:
        return None, None
    if isinstance(example, torch.Tensor) and first.ndim == 4:
        return tuple(first.shape[1:]), None
    return tuple(first.shape[1:]), pytree.tree_map_only(torch.Tensor, lambda x: x[:1] if x.ndim else x, example)
