"""What a search chooses from: the one thing that a planner need not know the inside of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from secateurs.cost import CostModel
    from secateurs.data import Data
    from secateurs.network import NetworkSpec
    from secateurs.plan import Plan
    from secateurs.progress import Progress
    from secateurs.search.legal import Legal
    from secateurs.search.problem import Rows
    from secateurs.structure import Graph


class Space(Protocol):
    """Groups with legal widths, what keeping so many of each costs and is worth, and the plan that a choice makes.

    The first groups are those of units, in the order of the graph's; further ones are the space's own.
    """

    @property
    def graph(self) -> Graph:
        """The traced network."""

    @property
    def legal(self) -> Legal:
        """Which networks may be returned."""

    @property
    def spec(self) -> NetworkSpec:
        """What is chosen from, as numbers."""

    @property
    def widths_only(self) -> bool:
        """Whether a choice is widths and removed blocks alone, which strategies that judge candidates can judge."""

    def model(self, resource: str) -> CostModel:
        """What a choice takes of a resource.

        Raises:
            PlanError: the resource cannot be limited here, or its model was not given.
        """

    def options(self, models: Sequence[CostModel]) -> tuple[np.ndarray, ...]:
        """Legal widths of every group, without those that cost as much as a larger one by all ``models``."""

    def values(
        self, scores: Mapping[str, np.ndarray], images: Data | None, rows: Rows | None, progress: Progress
    ) -> tuple[np.ndarray, ...]:
        """The value of keeping 0, 1 … of every group, float64 [units + 1] each.

        ``images``: what values are measured on, where they are; ``rows``: where these are kept.
        """

    def finished(self, plan: Plan, widths: np.ndarray) -> Plan:
        """The plan of units with the rest of the choice in it."""

    def allowing(self, legal: Legal) -> Space:
        """The same with other legal networks."""
