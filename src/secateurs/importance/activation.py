"""Criterion ``activation``: weights that read a unit, times the norm of what they read.

Card. Formula: s_i = Σ_l Σ_o |W_l[o, i]|·‖X_{l,i}‖₂ over all consumers l of the unit, ‖X‖ its input norm per image.
Source: Wanda, Sun et al. 2023, arXiv 2306.11695, which scores single weights; summed per input unit it is the bound
of the change at the consumers' outputs. Ours: divided by the consumer's total so that layers compare. Cost: one
forward pass, no labels. When to use: without labels. When not: with labels, loss-aware criteria are better.
"""

from __future__ import annotations

import numpy as np

from secateurs.errors import StructureError
from secateurs.importance.context import Context, needs, within_groups
from secateurs.importance.weights import consumers, tensor_of
from secateurs.structure.graph import Graph


@within_groups
@needs("inputs")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Relative input contributions float64 [units]."""
    statistics = context.gathered("activation", "inputs")
    found = []
    for view in consumers(graph, group):
        if view.layer not in statistics.inputs:
            continue
        weight = tensor_of(graph, view.parameter).double().abs().cpu()
        reading = weight.movedim(view.dim, 0).reshape(weight.shape[view.dim], -1).sum(dim=1).numpy()
        contribution = reading * statistics.inputs[view.layer]
        found.append(contribution[view.indices].sum(axis=1) / max(float(contribution.sum()), 1e-300))
    if not found:
        raise StructureError(
            f"No convolution or linear layer reads the units of group {group}, so what they feed cannot be computed. "
            "Choose a criterion over filters such as splamp, or keep the group whole."
        )
    total: np.ndarray = np.sum(found, axis=0)
    return total
