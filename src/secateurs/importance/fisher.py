"""Criterion ``fisher``: second-order effect of a unit on the loss by the empirical Fisher information of its mask.

Card. Formula: s_i = ½ E_n φ_{n,i}², φ behind the batch norms of every coupled producing layer, summed before squaring;
in a group that no shortcut leads around, times max(1, T/Σs) with T the median of Σs over such groups.
Source: Theis et al. 2018, arXiv 1801.05787; coupled layers as in group Fisher, Liu et al. 2021, arXiv 2108.00708.
Ours: the factor. Without any one of these groups the output is constant, so all are worth the same as a whole; the
local approximation does not see that where the logits average over many units (MobileNetV1's last group: 0.6, the
others 7 to 33), and a search then keeps a hundredth of it. Cost: one backward pass over the calibration data. When to
use: to divide a budget between groups by expected loss. When not: on data that the network fits perfectly, all
gradients vanish.
"""

from __future__ import annotations

import numpy as np

from secateurs.importance.bottlenecks import bottlenecks
from secateurs.importance.context import Context, needs
from secateurs.importance.taylor import sensitivity
from secateurs.structure.graph import Graph


@needs("norms")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Half the mean squared effects float64 [units], raised where no shortcut leads around the group."""
    own = _plain(context, group)
    others = bottlenecks(graph)
    if group not in others or not own.any():
        return own
    known = context.gathered("fisher", "norms").norms
    whole = float(np.median([_plain(context, name).sum() for name in sorted(others) if name in known]))
    return own * max(1.0, whole / float(own.sum()))


def _plain(context: Context, group: str) -> np.ndarray:
    return 0.5 * sensitivity(context, group, "fisher", "norms").square
