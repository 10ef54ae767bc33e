"""Criterion ``fisher``: second-order effect of a unit on the loss by the empirical Fisher information of its mask.

Card. Formula: s_i = ½ E_n φ_{n,i}², φ behind the batch norms of every coupled producing layer, summed before squaring.
Source: Theis et al. 2018, arXiv 1801.05787; coupled layers as in group Fisher, Liu et al. 2021, arXiv 2108.00708.
Cost: one backward pass over the calibration data. When to use: to divide a budget between groups by expected loss.
When not: on data that the network fits perfectly, all gradients vanish.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance.context import Context, needs
from secateurs.importance.taylor import sensitivity
from secateurs.structure.graph import Graph


@needs("norms")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Half the mean squared effects float64 [units]."""
    return 0.5 * sensitivity(context, group, "fisher", "norms").square
