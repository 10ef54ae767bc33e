"""Criterion ``fpgm``: how far a filter lies from the others of its group.

Card. Formula: s_i = Σ_j ‖F_i − F_j‖₂ with F_i the folded filters of unit i in all coupled producing layers, joined.
Source: filter pruning via geometric median, He et al. 2019, arXiv 1811.00250. Ours: batch-norm folding, joined
coupled layers; divided by (units − 1) x the group's root mean square filter norm so that groups compare. Cost: one
product of the filters with themselves. When to use: where filters repeat each other. When not: small wide-apart
filters score high although they do little.
"""

from __future__ import annotations

import numpy as np
import torch

from secateurs.importance.context import Context, within_groups
from secateurs.importance.weights import filters
from secateurs.structure.graph import Graph


@within_groups
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Mean relative distances float64 [units]."""
    joined = torch.cat([matrix for _, matrix in filters(graph, group)], dim=1)
    squares = joined.square().sum(dim=1)
    distances = (squares[:, None] + squares[None, :] - 2 * joined @ joined.T).clamp_min(0).sqrt()
    distances.fill_diagonal_(0.0)
    scale = squares.mean().sqrt().clamp_min(1e-30) * max(1, len(joined) - 1)
    return (distances.sum(dim=1) / scale).cpu().numpy()
