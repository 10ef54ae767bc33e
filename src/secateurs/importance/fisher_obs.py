"""Criterion ``fisher_obs``: ``fisher`` says what a group's widths are worth, ``obs`` says which of its units stay.

Card. Formula: s_i = the r_i-th largest Fisher score of the group, r_i the unit's rank by ``obs``; value curves are
those of ``fisher``, kept units those of ``obs``. Where no reader of a group can be unfolded, its Fisher scores. Source:
the two criteria; the division of labour is ours. Why: Fisher information compares groups well, but looks at one unit at
a time; which set of units the readers can do without is what ``obs`` solves for, and least squares after the cut
reaches it. Measured on equal widths (benchmarks/selection.py). Cost: ``fisher`` and ``obs`` together, one backward
pass. When to use: with least-squares repair after the cut, where ``measured`` takes too long. When not: without
calibration data.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance import fisher, obs
from secateurs.importance.context import Context, needs
from secateurs.structure.graph import Graph


@needs("norms", "moments")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """The group's Fisher scores, float64 [units], dealt out in the order of ``obs``."""
    worth = fisher.score(graph, group, context)
    found = obs.readers_if_any(graph, group, context, "fisher_obs", weighted=True)
    if not found:
        return worth
    ranks = np.lexsort((worth, obs.remove_in_order(found)))  # equal costs: the lesser Fisher score goes first
    dealt = np.empty_like(worth)
    dealt[ranks] = np.sort(worth)
    return dealt
