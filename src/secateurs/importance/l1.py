"""Criterion ``l1``: sum of absolute weights of a unit's filters.

Card. Formula: s_i = Σ_l ‖W_l[i]‖₁ over all coupled producing layers l. Source: Li et al. 2017, "Pruning filters for
efficient ConvNets". Ours: coupled layers are summed. Cost: one read of the weights. When to use: as the field's
plainest baseline. When not: to divide a budget between groups, norms of different layers do not compare.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance.context import Context, within_groups
from secateurs.importance.weights import filters
from secateurs.structure.graph import Graph


@within_groups
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """L1 norms float64 [units]."""
    return np.sum([matrix.abs().sum(dim=1).cpu().numpy() for _, matrix in filters(graph, group, folded=False)], axis=0)
