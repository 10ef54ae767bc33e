"""Criterion ``taylor_bn``: first-order effect of a unit behind its batch norms, HALP's saliency.

Card. Formula: s_i = mean over batches of |E_n Σ_l (γ·∂loss_n/∂γ + β·∂loss_n/∂β)|, on the batch norm behind every
coupled producing layer l, on the layer's output where there is none. Source: HALP, arXiv 2110.10811 (docs/methods.md,
"Taylor scores"). Cost: one backward pass. When to use: to rebuild HALP. When not: ``taylor`` keeps the signs of single
images apart.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance.context import Context, needs
from secateurs.importance.taylor import sensitivity
from secateurs.structure.graph import Graph


@needs("norms")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Mean absolute batch effects float64 [units]."""
    return sensitivity(context, group, "taylor_bn", "norms").batch
