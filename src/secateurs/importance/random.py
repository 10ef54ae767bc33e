"""Criterion ``random``: the floor that every other criterion has to beat.

Card. Formula: s_i uniform in (0, 1), one stream per group from the seed. Source: none. Cost: nothing. When to use:
as a control, or to test a pipeline. When not: everywhere else.
"""

from __future__ import annotations

import zlib

import numpy as np

from secateurs.importance.context import Context, within_groups
from secateurs.structure.graph import Graph


@within_groups
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Random scores float64 [units], the same for the same seed and group name in any process."""
    units = next(g.units for g in graph.groups if g.name == group)
    return np.random.default_rng([context.seed, zlib.crc32(group.encode())]).random(units)
