"""A cost of a network (latency, memory, multiply-adds) as a sum of terms over tensor axes.

Latency models produce it, searches consume it; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from secateurs.network import AxisSpec

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_WORDS = {"bytes": "B", "macs": "multiply-adds"}


def quantity(value: float, unit: str) -> str:
    """``3.2 ms``, ``20 MB``, ``300 M multiply-adds``: at most four significant digits, decimal prefixes."""
    if unit == "ms":
        return f"{value:.4g} ms"
    factor, prefix = next((pair for pair in _PREFIXES if value >= pair[0]), (1.0, ""))
    word = _WORDS.get(unit, unit)
    return f"{value / factor:.4g} {prefix}{'' if unit == 'bytes' or not prefix else ' '}{word}"


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
