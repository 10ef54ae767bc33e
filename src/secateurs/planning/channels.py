"""Widths of groups of units and whole blocks: what every search can choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from secateurs.budgets import Limited
from secateurs.errors import PlanError
from secateurs.search.legal import Legal

if TYPE_CHECKING:
    import numpy as np

    from secateurs.cost import CostModel
    from secateurs.data import Data
    from secateurs.latency.model import LatencyModel
    from secateurs.network import NetworkSpec
    from secateurs.plan import Plan
    from secateurs.progress import Progress
    from secateurs.resources import Seen
    from secateurs.search.problem import Rows
    from secateurs.structure import Graph


@dataclass(frozen=True)
class Channels:
    """A :class:`~secateurs.planning.space.Space` of widths and blocks.

    ``costs``: the latency model (None where latency is not limited); ``dense``: what the dense network was measured to
    take of the resources, where known; ``batch``: that memory is counted for; ``seen``: what it was for some networks,
    dense first; ``files``: bytes of some networks' files, as the target runs them; ``on``: latency models of several
    targets by their names.
    """

    graph: Graph
    costs: LatencyModel | None = None
    legal: Legal = field(default_factory=Legal)
    dense: Mapping[str, float] = field(default_factory=dict)
    batch: int = 1
    seen: Sequence[Seen] = ()
    files: Sequence[Seen] = ()
    on: Mapping[str, LatencyModel] = field(default_factory=dict)
    widths_only: bool = True

    @property
    def spec(self) -> NetworkSpec:
        """The network's own numbers."""
        return self.graph.spec

    def model(self, resource: str) -> CostModel:
        """Of latency the measured model, of the others what follows from the network.

        Raises:
            PlanError: latency is limited, but there is no latency model.
        """
        from secateurs.resources import macs_model, memory_model, size_model

        if resource == "macs":
            return macs_model(self.spec)
        if resource == "file_size":
            return size_model(self.spec, self.dense.get("file_size"), self.files)
        if resource == "memory":
            return memory_model(self.spec, self.batch, self.seen)
        target = Limited.of(resource).target
        costs = self.on.get(target) if target else self.costs
        if costs is None:
            raise PlanError("A latency budget needs a latency model: costs = secateurs.profile(graph, target=...).")
        return costs.cost_model()

    def options(self, models: Sequence[CostModel]) -> tuple[np.ndarray, ...]:
        """The right ends of the steps of the cost models, among the legal widths."""
        from secateurs.search.options import legal_widths, right_ends

        spec, legal = self.spec, self.legal
        pinned = legal.pins(group.name for group in spec.groups)
        least = {group.name: legal.fewest(group.units) for group in spec.groups}
        options = legal_widths(spec, minimum=least, maximum=legal.widest, pinned=pinned)
        return right_ends(spec, options, list(models))

    def values(
        self, scores: Mapping[str, np.ndarray], images: Data | None, rows: Rows | None, progress: Progress
    ) -> tuple[np.ndarray, ...]:
        """Sums of the best scores."""
        from secateurs.search.values import curve

        return tuple(curve(scores[group.name]) for group in self.spec.groups)

    def finished(self, plan: Plan, widths: np.ndarray) -> Plan:
        """The plan as it is."""
        return plan

    def allowing(self, legal: Legal) -> Channels:
        """The same with other legal networks."""
        return replace(self, legal=legal)
