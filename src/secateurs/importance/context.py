"""What a criterion is given beside the graph, and what a criterion is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from secateurs.importance.statistics import Statistics
    from secateurs.structure.graph import Graph


@dataclass(frozen=True)
class Context:
    """``seed``: of anything random; ``statistics``: gathered over calibration data, None for data-free criteria."""

    seed: int = 0
    statistics: Statistics | None = None


class Criterion(Protocol):
    """Scores the units of one group. A user's own function with these three arguments is one."""

    def __call__(self, graph: Graph, group: str, context: Context) -> np.ndarray:
        """Scores float64 [units]; higher = keep. Only values of different groups that are comparable make sense
        to a strategy that trades groups against each other."""
