"""Criterion ``taylor``: first-order effect of a unit on the loss, over the producing layers' outputs.

Card. Formula: s_i = E_n |φ_{n,i}|, φ_{n,i} = Σ_l Σ_positions y·∂loss_n/∂y at unit i of every coupled producing layer l,
which equals Σ w·∂loss_n/∂w of its filter and bias. Source: Molchanov et al. 2017/2019 (arXiv 1611.06440, 1906.10771);
the sum over coupled layers inside the absolute value as in HALP (docs/methods.md, "Taylor scores"). Ours: the absolute
value is taken per image, not per batch: a trained network's batch gradient is nearly zero and its sign noise. Cost: one
backward pass over the calibration data. When to use: with calibration data. When not: for deep cuts, the first order
ends early.
"""

from __future__ import annotations

import numpy as np

from secateurs.errors import PlanError
from secateurs.importance.context import Context, needs
from secateurs.importance.statistics import LossSensitivity
from secateurs.structure.graph import Graph


@needs("outputs")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Mean absolute first-order effects float64 [units]."""
    return sensitivity(context, group, "taylor", "outputs").absolute


def sensitivity(context: Context, group: str, criterion: str, kind: str) -> LossSensitivity:
    """The gathered φ of a group.

    Raises:
        PlanError: not gathered, or no module produces the group's units (its weights are used outside of modules).
    """
    statistics = context.gathered(criterion, kind)
    found = (statistics.outputs if kind == "outputs" else statistics.norms).get(group)
    if found is None:
        raise PlanError(
            f"Criterion {criterion} reads the outputs of convolution and linear modules, but none produces the units "
            f"of group {group}. Choose activation, splamp or obd, or keep the group whole."
        )
    return found
