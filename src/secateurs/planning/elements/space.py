"""What a search over widths and kernel elements chooses from, what its choices are worth, and the plans they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from secateurs.budgets import RESOURCES
from secateurs.cost import CostModel
from secateurs.elements.patterns import PatternChoice, value_curve
from secateurs.elements.rectangles import rectangle_curve
from secateurs.elements.selection import DEFAULT_BLOCK, SHARES, SUFFIX, patterns, square, steps
from secateurs.errors import PlanError
from secateurs.network import NetworkSpec
from secateurs.plan import Plan
from secateurs.search.legal import Legal
from secateurs.search.values import curve
from secateurs.structure import apply
from secateurs.structure.kernel_elements import groups_of

if TYPE_CHECKING:
    from secateurs.data import Data
    from secateurs.progress import Progress
    from secateurs.search.problem import Rows
    from secateurs.structure import Graph

_ANCHORS = ((1 / 2, 4 / 9), (1 / 4, 2 / 9))
"""Shares of units and of kernel positions that stay where the loss is measured: a usual cut and a deep one."""
_POWERS = (2.0, 8.0)
"""Lowest and highest power of the lost share that the loss may grow with: losses of single layers hardly grow, those of
all layers together do. On cifar-resnet56 at half the latency powers of 2, 3 and 4 are equally good, 1 is worse."""


@dataclass(frozen=True)
class ElementSpace:
    """What a joint search chooses from.

    A :class:`~secateurs.planning.space.Space`. ``layers``: weight names, in the order of their groups behind the
    network's own; ``offered``: legal widths and counts of all groups; ``latency``: in ms over both; ``dense_ms``: of
    the dense network, measured; ``target``: shown in messages; ``legal``: which networks may be returned.
    """

    graph: Graph
    scope: str
    spec: NetworkSpec
    layers: tuple[str, ...]
    offered: tuple[np.ndarray, ...]
    latency: CostModel
    dense_ms: float
    target: str
    legal: Legal = field(default_factory=Legal)
    widths_only: bool = False

    def model(self, resource: str) -> CostModel:
        """Of latency.

        Raises:
            PlanError: another resource.
        """
        if resource != "latency":
            raise PlanError(
                f"With kernel elements only latency can be limited, not {RESOURCES[resource].words}: the runtime's "
                f"file holds pruned elements as zeros. Leave out {RESOURCES[resource].option}, or --elements."
            )
        return self.latency

    def options(self, models: Sequence[CostModel]) -> tuple[np.ndarray, ...]:
        """What was measured to pay."""
        return self.offered

    def allowing(self, legal: Legal) -> ElementSpace:
        """The same with other legal networks; what is offered stays."""
        return replace(self, legal=legal)

    def counts(self, widths: np.ndarray) -> dict[str, float]:
        """Kernel positions that stay, on average, per weight name, of a solution's widths."""
        own = len(self.graph.spec.groups)
        return {name: self.positions(name, int(width)) for name, width in zip(self.layers, widths[own:], strict=True)}

    def positions(self, name: str, width: int) -> float:
        """Kernel positions that stay, on average, in a layer whose group of elements has this width."""
        weight = dict(self.graph.model.named_parameters(remove_duplicate=False))[name]
        return width if weight[0, 0].numel() > 1 else width / SHARES

    def note(self, plan: Plan) -> str:
        """How many layers of a plan keep how many of their kernel positions, in one sentence."""
        weights = dict(self.graph.model.named_parameters(remove_duplicate=False))
        kept: dict[str, int] = {}
        for name in self.layers:
            count = plan.provenance["elements"]["counts"].get(name)
            if count is not None:
                positions = weights[name][0, 0].numel()
                text = f"{count} of {positions}" if positions > 1 else f"{count:.0%} of the channels of a 1×1"
                kept[text] = kept.get(text, 0) + 1
        layers = (f"{text} in {found} layer{'s' if found > 1 else ''}" for text, found in sorted(kept.items()))
        return f"Kernel elements (scope {self.scope}) that stay: {', '.join(layers)}."

    def finished(self, plan: Plan, widths: np.ndarray) -> Plan:
        """The plan of channels with patterns for the weights as it leaves them."""
        narrow = apply(self.graph.model, plan, (self.graph.args, self.graph.kwargs), check=False)
        left = {name for name, _ in narrow.named_parameters(remove_duplicate=False)}
        counts = {name: count for name, count in self.counts(widths).items() if name in left}
        found = patterns(narrow, counts, scope=self.scope)
        facts = {"scope": self.scope, "counts": counts}
        return plan.model_copy(update={"elements": found, "provenance": {**plan.provenance, "elements": facts}})

    def values(
        self, scores: Mapping[str, np.ndarray], images: Data | None, rows: Rows | None, progress: Progress
    ) -> tuple[np.ndarray, ...]:
        """Measured on images where there are any; see :meth:`worth`."""
        if images is None:
            progress.say("Without data, every layer's elements and every group count the same: give data.")
            return self.worth(scores)
        from secateurs.planning.elements.losses import measured_losses

        losses = measured_losses(self, scores, images, channels=self.legal.channels, rows=rows, progress=progress)
        return self.worth(scores, losses)

    def worth(
        self, scores: Mapping[str, np.ndarray], losses: Mapping[str, Sequence[float]] | None = None
    ) -> tuple[np.ndarray, ...]:
        """Per group minus the expected increase of the loss when 0, 1 … units stay.

        Of elements, what goes counts by its share of the layer's energy; of units by its share of the scores.
        ``losses``: measured increases by group name at both :meth:`anchors`, and by block name; the loss is a power of
        the lost share through both (a loss that only scaled with the share would empty some layers to spare others);
        without them every group's and every layer's loss as a whole counts the same.
        """
        parameters = dict(self.graph.model.named_parameters(remove_duplicate=False))
        found: list[np.ndarray] = []
        for group, anchor in zip(self.spec.groups, self.anchors(), strict=True):
            weight = parameters.get(group.name.removesuffix(SUFFIX)) if group.name.endswith(SUFFIX) else None
            if weight is None:
                total = curve(scores[group.name])
                share = total / total[-1] if total[-1] > 0 else np.linspace(0.0, 1.0, len(total))
            else:
                share = self._retained(group.name.removesuffix(SUFFIX), weight)
            lost = 1.0 - share
            found.append(-lost if losses is None else -_grown(lost, anchor, losses[group.name]))
        return tuple(found) if losses is None else self._with_blocks(found, losses)

    def _retained(self, name: str, weight: torch.Tensor) -> np.ndarray:
        """Share of a weight's energy that stays when 0, 1 … of its positions do."""
        energy = square(name, weight)
        if self.scope == "layer":
            return rectangle_curve(energy)
        choice = PatternChoice(self.scope, 1, DEFAULT_BLOCK, pool="block" if self.scope == "block" else "unit")
        return value_curve(energy, choice, groups=groups_of(self.graph.model, name), steps=steps(weight))

    def _with_blocks(self, found: list[np.ndarray], losses: Mapping[str, Sequence[float]]) -> tuple[np.ndarray, ...]:
        """The same, with values of keeping nothing that add up to what the loss of a whole block was measured to be."""
        for block in self.spec.blocks:
            whole = sum(-float(found[group][0]) for group in block.groups)
            for group in block.groups:
                part = losses[block.name][0] * -float(found[group][0]) / max(whole, 1e-12)
                least = float(found[group][self.offered[group][0]])
                found[group] = np.concatenate([[min(-part, least)], found[group][1:]])
        return tuple(found)

    def anchors(self) -> tuple[tuple[int, ...], ...]:
        """Units or positions per group at which :func:`measured_losses` measures, the fewest last."""
        own = len(self.graph.spec.groups)

        def kept(group: int, shares: tuple[float, float]) -> int:
            spec = self.spec.groups[group]
            return max(spec.min_units, round(shares[group >= own] * spec.units))

        return tuple(tuple(kept(group, shares) for shares in _ANCHORS) for group in range(len(self.spec.groups)))


def _grown(lost: np.ndarray, anchors: Sequence[int], losses: Sequence[float]) -> np.ndarray:
    """Losses by the share that is lost: a power law through two measured ones."""
    (near, far), (less, more) = (np.maximum(lost[list(anchors)], 1e-9), losses)
    power = _POWERS[0]
    if far > near * (1 + 1e-6) and more > less:
        power = float(np.clip(np.log(more / less) / np.log(far / near), *_POWERS))
    return np.asarray(less * (lost / near) ** power)
