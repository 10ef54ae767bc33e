"""Widths worth offering: the right ends of the plateaus of a group's cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateurs.cost import CostTerm
from secateurs.latency.design import rounded
from secateurs.latency.predictor import LatencyModel
from secateurs.network import NetworkSpec

_CONTEXTS = (1.0, 0.75, 0.5, 0.3)
_CONTEXT_GRAIN = 16


def legal_widths(
    model: LatencyModel, spec: NetworkSpec, *, tolerance: float = 0.004, most: int = 40
) -> tuple[np.ndarray, ...]:
    """Widths to offer per group, ascending, the dense width included.

    A width is offered only if it is cheaper than every larger offered one by more than the noise; widths below the
    last step are legal too where they are cheaper.

    Args:
        model: latency model of the network.
        spec: the network.
        tolerance: smallest saving that counts, as a share of what the whole group costs.
        most: offer at most about this many widths per group (a larger tolerance is used where there would be more).
    """
    terms = model.terms()
    contexts = [rounded(spec, np.full(len(spec.groups), share), _CONTEXT_GRAIN) for share in _CONTEXTS]
    offered = []
    for index, group in enumerate(spec.groups):
        choices = np.arange(max(1, group.min_units), group.units + 1)
        cost = group_cost(terms, contexts, index, choices)
        limit = tolerance
        kept = _plateau_ends(cost, limit)
        while len(kept) > most:
            limit *= 1.5
            kept = _plateau_ends(cost, limit)
        offered.append(choices[kept])
    return tuple(offered)


def group_cost(
    terms: Sequence[CostTerm], contexts: Sequence[np.ndarray], group: int, choices: np.ndarray
) -> np.ndarray:
    """Cost in ms of everything that touches ``group`` at each width [choices], averaged over ``contexts``."""
    total = np.zeros(len(choices))
    for term in terms:
        axes = [axis for axis in (term.inputs, term.outputs) if axis is not None]
        if any(part == group for axis in axes for part, _ in axis.parts):
            for context in contexts:
                table = np.repeat(context[None, :], len(choices), axis=0)
                table[:, group] = choices
                total += term.evaluate(table)
    return total / max(1, len(contexts))


def _plateau_ends(cost: np.ndarray, tolerance: float) -> np.ndarray:
    """Positions that are cheaper than every larger kept one by more than ``tolerance`` of the last cost."""
    margin = tolerance * max(float(cost[-1]), 1e-12)
    kept, best = [len(cost) - 1], float(cost[-1])
    for position in range(len(cost) - 2, -1, -1):
        if cost[position] < best - margin:
            kept.append(position)
            best = float(cost[position])
    return np.array(kept[::-1])
