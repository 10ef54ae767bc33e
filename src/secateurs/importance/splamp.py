"""Criterion ``splamp``: the structured layer-adaptive magnitude score.

Card. Formula: m_i = Σ_l (γ_i²/(σ_i²+ε)) ‖W_l[i]‖² over coupled layers, s_i = m_i / Σ_{j : m_j ≥ m_i} m_j, so the
largest filter of every group scores exactly 1 and no group can empty. Source: SP-LAMP, Pan et al. 2023, arXiv
2305.14403, after LAMP, arXiv 2010.07611 (docs/methods.md, "SP-LAMP score"); filter norm and the sum over coupled layers
are our reading, the batch-norm folding is ours. Ties get the score of their position after a stable sort. Cost: one
read of the weights. When to use: the data-free default; it compares across groups. When not: with calibration data, it
is blind to the loss and treats a wide layer's weak filters as nearly worthless.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance.context import Context
from secateurs.importance.l2_folded import squared
from secateurs.search.values import order
from secateurs.structure.graph import Graph


def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """SP-LAMP scores float64 [units], in (0, 1]; the largest is exactly 1."""
    return layer_adaptive(squared(graph, group))


def layer_adaptive(mass: np.ndarray) -> np.ndarray:
    """m_(r) / Σ_{q ≤ r} m_(q) in descending order of mass, scattered back: float64 [units].

    A group without any mass counts as one of equal masses, so that its scores stay finite; one with
    a mass that is no number has no scores that are.
    """
    mass = np.asarray(mass, dtype=np.float64)
    if not np.isfinite(mass).all():
        return np.full_like(mass, np.nan)
    largest = mass.max(initial=0.0)
    mass = mass / largest if largest > 0 else np.ones_like(mass)
    ranking = order(mass)
    result = np.empty_like(mass)
    result[ranking] = mass[ranking] / np.cumsum(mass[ranking])
    return result
