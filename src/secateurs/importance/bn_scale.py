"""Criterion ``bn_scale``: the batch norm's gain.

Card. Formula: s_i = Σ_l |γ_{l,i}| over the batch norms behind all coupled producing layers l. Source: network
slimming, Liu et al. 2017, arXiv 1708.06519, there after training with an L1 penalty on γ. Ours: coupled layers are
summed. Cost: nothing. When to use: on networks trained with that penalty. When not: otherwise; a group without any
batch norm is refused.
"""

from __future__ import annotations

import numpy as np
import torch

from secateurs.errors import PlanError
from secateurs.importance.context import Context, within_groups
from secateurs.importance.weights import producers
from secateurs.structure.fold import batch_norm_pairs
from secateurs.structure.graph import Graph


@within_groups
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Gains float64 [units].

    Raises:
        PlanError: no batch norm with a gain follows the group's layers.
    """
    pairs, total = batch_norm_pairs(graph), None
    for view in producers(graph, group):
        norm = graph.model.get_submodule(pairs[view.parameter]) if view.parameter in pairs else None
        gain = getattr(norm, "weight", None)
        if isinstance(gain, torch.Tensor):
            here = gain.detach().double().abs().cpu().numpy()[view.indices].sum(axis=1)
            total = here if total is None else total + here
    if total is None:
        raise PlanError(
            f"Criterion bn_scale needs a batch norm with a gain behind group {group}; there is none. "
            "Choose another criterion, such as l2_folded."
        )
    return np.asarray(total)
