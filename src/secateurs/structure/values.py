"""What the analysis knows of one tensor of the exported graph: its shape and which units run along which axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Factor:
    """Ids of the units along one axis. An axis may carry several factors; an index goes if any of its ids goes."""

    dim: int
    ids: np.ndarray


@dataclass(frozen=True)
class Value:
    """Shape, factors, and the real tensor where the value depends on no input and no parameter.

    An axis without a factor is *free*: nothing along it can be removed.
    """

    shape: tuple[int, ...]
    factors: tuple[Factor, ...] = ()
    constant: torch.Tensor | None = None

    def along(self, dim: int) -> list[np.ndarray]:
        """Id vectors [size of the axis] of every factor along ``dim`` (negative dims count from the end)."""
        dim %= max(len(self.shape), 1)
        return [factor.ids for factor in self.factors if factor.dim == dim]

    def dims(self) -> set[int]:
        """Axes that carry units."""
        return {factor.dim for factor in self.factors}

    def with_shape(self, shape: Sequence[int], keep: Sequence[int]) -> Value:
        """A value of another shape that keeps the factors of the axes ``keep`` in place."""
        return Value(tuple(shape), tuple(factor for factor in self.factors if factor.dim in keep))


def spread(factor: Factor, shape: Sequence[int]) -> torch.Tensor:
    """The factor's ids as an int64 tensor of ``shape``; axes without units have stride 0."""
    view = [1] * len(shape)
    view[factor.dim] = len(factor.ids)
    return torch.from_numpy(factor.ids).view(view).expand(tuple(shape))
