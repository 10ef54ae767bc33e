"""Criterion ``l2``: Euclidean norm of a unit's filters.

Card. Formula: s_i = √(Σ_l ‖W_l[i]‖²) over all coupled producing layers l. Source: folklore; "group L2" of
Torch-Pruning also adds the consumers' columns, this one does not. Cost: one read of the weights. When to use: as a
baseline. When not: under batch norms (see ``l2_folded``) and to divide a budget between groups.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance.context import Context, within_groups
from secateurs.importance.weights import filters
from secateurs.structure.graph import Graph


@within_groups
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """L2 norms float64 [units]."""
    squares = [matrix.square().sum(dim=1).cpu().numpy() for _, matrix in filters(graph, group, folded=False)]
    return np.sqrt(np.sum(squares, axis=0))
