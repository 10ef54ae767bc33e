"""Criterion ``reconstruction``: relative error of the readers' outputs that least squares cannot make up for.

Card. Formula: as ``obs`` with λ_o = 1 / (E‖XWᵀ‖²) of the consumer: half the share of its output's energy that is lost.
Source: layer-wise reconstruction as in AMC, OBC and OSSCAR (docs/methods.md, "Reconstruction score"). Cost: as ``obs``.
When to use: without labels, with least-squares repair after the cut. When not: a relative error does not say what it
does to the loss; see ``obs``.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance.context import Context, needs
from secateurs.importance.obs import readers, remove_in_order
from secateurs.structure.graph import Graph


@needs("moments")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Lost shares of output energy at removal, float64 [units].

    Raises:
        PlanError: no consumer of the group can be unfolded.
    """
    return remove_in_order(readers(graph, group, context, "reconstruction", weighted=False))
