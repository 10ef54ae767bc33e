"""Criterion ``lamp``: layer-adaptive magnitude of single weights, summed per filter.

Card. Formula: for each weight u of a layer, a(u) = w_u² / Σ_{|w_v| ≥ |w_u|} w_v²; s_i = mean over coupled layers of
Σ_{u in filter i} a(u). Source: LAMP, Lee et al. 2021, arXiv 2010.07611, which prunes single weights; summing its scores
per filter is our reading (docs/methods.md, "LAMP score"). Cost: one sort of the weights. When to use: as the
unstructured ancestor of ``splamp``, which see. When not: for serious plans.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance.context import Context
from secateurs.importance.splamp import layer_adaptive
from secateurs.importance.weights import filters
from secateurs.structure.graph import Graph


def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Summed LAMP scores float64 [units]."""
    found = []
    for _, matrix in filters(graph, group, folded=False):
        weights = matrix.cpu().numpy()
        found.append(layer_adaptive(weights.reshape(-1) ** 2).reshape(weights.shape).sum(axis=1))
    return np.mean(found, axis=0)
