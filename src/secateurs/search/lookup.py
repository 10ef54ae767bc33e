"""Costs of many candidates at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateurs.cost import CostModel
from secateurs.search.options import reachable_lengths

ENTRIES_AT_MOST = 1 << 18
"""Entries of one term's table; a term with more is computed each time."""


class Lookup:
    """Costs of many candidates at once, from one table per term over the legal lengths of its axes."""

    def __init__(self, options: Sequence[np.ndarray], models: Sequence[CostModel]) -> None:
        self._options, self._models = options, models
        self._tables: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray] | None] = {}

    def costs(self, widths: np.ndarray, gone: np.ndarray) -> np.ndarray:
        """Costs [n, constraints] of widths [n, groups] with blocks gone, bool [n, blocks]."""
        result = np.empty((len(widths), len(self._models)))
        for column, model in enumerate(self._models):
            total = np.full(len(widths), model.offset, dtype=np.float64)
            for index, term in enumerate(model.terms):
                cost = self._term(column, index, widths)
                if term.blocks:
                    cost = np.where(gone[:, list(term.blocks)].any(axis=1), 0.0, cost)
                total = total + cost
            result[:, column] = total
        return result

    def _term(self, column: int, index: int, widths: np.ndarray) -> np.ndarray:
        term = self._models[column].terms[index]
        if (column, index) not in self._tables:
            self._tables[column, index] = self._fill(column, index)
        stored = self._tables[column, index]
        if stored is None:
            return term.evaluate(widths)
        lengths_in, lengths_out, table = stored
        zero = np.zeros(len(widths), dtype=np.int64)
        here = zero if term.inputs is None else term.inputs.length(widths)
        there = zero if term.outputs is None else term.outputs.length(widths)
        row = np.minimum(np.searchsorted(lengths_in, here), len(lengths_in) - 1)
        col = np.minimum(np.searchsorted(lengths_out, there), len(lengths_out) - 1)
        if np.array_equal(lengths_in[row], here) and np.array_equal(lengths_out[col], there):
            return table[row, col]
        return term.evaluate(widths)

    def _fill(self, column: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        term = self._models[column].terms[index]
        lengths_in = reachable_lengths(term.inputs, self._options)
        lengths_out = reachable_lengths(term.outputs, self._options)
        if len(lengths_in) * len(lengths_out) > ENTRIES_AT_MOST:
            return None
        table = np.asarray(term.cost(lengths_in[:, None], lengths_out[None, :]), dtype=np.float64)
        return lengths_in, lengths_out, np.broadcast_to(table, (len(lengths_in), len(lengths_out)))
