"""Criterion ``obd``: second-order effect of a unit's weights by a diagonal Hessian.

Card. Formula: s_i = ½ Σ_l Σ_{w in filter i of l} h_w w², h_w = E_n (∂loss_n/∂w)² (empirical Fisher). Source: optimal
brain damage, LeCun et al. 1989; "group Hessian" of Torch-Pruning. Ours: h comes from batch gradients, E_b [N ḡ_b²],
equal to the per-image mean square where the mean gradient vanishes, as it does in a trained network. Cost: one backward
pass with weight gradients. When to use: as the field's second-order baseline. When not: it treats a filter's weights
as independent, which they are not; see ``fisher``.
"""

from __future__ import annotations

import numpy as np
import torch

from secateurs.importance.context import Context, needs
from secateurs.importance.weights import producers, tensor_of
from secateurs.structure.graph import Graph


@needs("gradients")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Half the summed curvature x square float64 [units]."""
    statistics = context.gathered("obd", "gradients")
    found = []
    for view in producers(graph, group):
        weight = tensor_of(graph, view.parameter).double().cpu()
        curvature = torch.from_numpy(statistics.gradients[view.parameter])
        found.append(0.5 * view.matrix(curvature * weight.square()).sum(dim=1).numpy())
    return np.sum(found, axis=0)
