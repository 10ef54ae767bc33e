"""Criterion ``l2_folded``: Euclidean norm of a unit's filters with batch norms folded in.

Card. Formula: s_i = √(Σ_l (γ_i²/(σ_i²+ε)) ‖W_l[i]‖²) over all coupled producing layers l. Source: ours
(docs/methods.md, "Folded filter norms"). Cost: one read of the weights. When to use: instead of ``l2`` wherever batch
norms follow. When not: to divide a budget between groups.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance.context import Context, within_groups
from secateurs.importance.weights import filters
from secateurs.structure.graph import Graph


@within_groups
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Folded L2 norms float64 [units]."""
    return np.sqrt(squared(graph, group))


def squared(graph: Graph, group: str) -> np.ndarray:
    """Squared folded norms float64 [units]: the mass m_i of docs/methods.md, "Folded filter norms"."""
    return np.sum([matrix.square().sum(dim=1).cpu().numpy() for _, matrix in filters(graph, group)], axis=0)
