"""A cost of a network (latency, memory, multiply-adds) as a sum of terms over tensor axes.

Latency models produce it, searches consume it; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from secateurs.network import AxisSpec

CostFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(input lengths, output lengths), both integer arrays that broadcast together, to costs of the broadcast shape."""


@dataclass(frozen=True)
class CostTerm:
    """Cost of one operator as a function of its input and output channel axes.

    ``inputs``/``outputs``: None where the cost does not depend on that side (the function then gets zeros);
    ``blocks``: the term vanishes when any of these blocks is removed.
    """

    name: str
    inputs: AxisSpec | None
    outputs: AxisSpec | None
    cost: CostFunction
    blocks: tuple[int, ...] = ()

    def evaluate(self, widths: np.ndarray) -> np.ndarray:
        """Costs [...] at widths [..., groups]."""
        widths = np.asarray(widths)
        none = np.zeros(widths.shape[:-1], dtype=np.int64)
        inputs = none if self.inputs is None else self.inputs.length(widths)
        outputs = none if self.outputs is None else self.outputs.length(widths)
        return np.asarray(self.cost(inputs, outputs), dtype=np.float64)


@dataclass(frozen=True)
class CostModel:
    """``offset + sum of terms``, in ``unit`` (``ms``, ``bytes``, ``macs``)."""

    unit: str
    offset: float
    terms: tuple[CostTerm, ...]

    def evaluate(self, widths: np.ndarray, removed: Collection[int] = ()) -> np.ndarray:
        """Costs [...] at widths [..., groups] with the blocks ``removed`` gone."""
        widths, gone = np.asarray(widths), set(removed)
        total = np.full(widths.shape[:-1], self.offset, dtype=np.float64)
        for term in self.terms:
            if gone.isdisjoint(term.blocks):
                total = total + term.evaluate(widths)
        return total
