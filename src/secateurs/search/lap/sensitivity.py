"""Latency sensitivity: how much of the network's latency goes when one group alone is cut.

Card. S_g(ρ) = (T(dense) - T(dense with only g cut by ρ)) / T(dense), ρ = 0.1 … 0.9; s_g = mean_ρ S_g(ρ)/ρ; ŝ_g =
s_g / max_h s_h. Source: our reading of LAP (docs/methods.md,
"LAP latency sensitivity"). A flat stretch of the curve is a plateau of the runtime's
staircase; a negative value is a cut that makes the network slower, and keeps its sign. Cost: one evaluation of the
latency model for all groups and ratios, or one measured network each. When not: it sees one group at a time, so the
sum over groups counts twice what two neighbours save together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from secateurs.cost import CostModel
from secateurs.errors import PlanError
from secateurs.network import NetworkSpec

RATIOS = tuple(round(0.1 * step, 1) for step in range(1, 10))

Latencies = Callable[[np.ndarray], np.ndarray]
"""Widths [n, groups] to latencies [n], in any unit."""


@dataclass(frozen=True)
class Sensitivity:
    """``groups``: indices of the groups asked for; ``units``: of each; ``widths``: kept at each ratio, int64 [groups,
    ratios]; ``saved``: S_g, the share of the dense latency that goes, float64 [groups, ratios]."""

    groups: tuple[int, ...]
    units: np.ndarray
    widths: np.ndarray
    saved: np.ndarray

    @cached_property
    def per_unit(self) -> np.ndarray:
        """s_g, latency saved per share of the units that is pruned, float64 [groups]; 0 where nothing can go."""
        cut = 1.0 - self.widths / self.units[:, None]
        real = cut > 0
        slopes = np.divide(self.saved, cut, out=np.zeros_like(self.saved), where=real)
        return slopes.sum(axis=1) / np.maximum(1, real.sum(axis=1))

    @cached_property
    def relative(self) -> np.ndarray:
        """ŝ_g = s_g / max s_h, at most 1, float64 [groups]; 0 everywhere where no cut saves anything."""
        largest = float(self.per_unit.max(initial=0.0))
        return self.per_unit / largest if largest > 0 else np.zeros_like(self.per_unit)

    def at(self, index: int, width: float) -> float:
        """S of the ``index``-th group at any width, linear between the curve's points and 0 at full width."""
        widths = np.append(self.widths[index, ::-1], self.units[index])
        saved = np.append(self.saved[index, ::-1], 0.0)
        return float(np.interp(width, widths, saved))

    def select(self, groups: Sequence[int]) -> Sensitivity:
        """The curves of some of the groups."""
        rows = [self.groups.index(group) for group in groups]
        return Sensitivity(tuple(groups), self.units[rows], self.widths[rows], self.saved[rows])


def single_cuts(spec: NetworkSpec, groups: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Networks with one group cut: (that group's width [chosen, ratios], all widths [chosen, ratios, groups])."""
    chosen = list(range(len(spec.groups)) if groups is None else groups)
    dense, least = spec.dense_widths, np.maximum(1, spec.min_widths)
    kept = np.floor(dense[chosen, None] * (1 - np.array(RATIOS)) + 0.5).astype(np.int64)
    kept = np.maximum(kept, least[chosen, None])
    networks = np.tile(dense, (len(chosen), len(RATIOS), 1))
    for row, group in enumerate(chosen):
        networks[row, :, group] = kept[row]
    return kept, networks


def sensitivity(spec: NetworkSpec, latencies: Latencies, groups: Sequence[int] | None = None) -> Sensitivity:
    """The curves of all or some groups.

    Args:
        spec: the network.
        latencies: of networks with widths [n, groups]; the first one asked for is the dense network.
        groups: indices, None for all.

    Raises:
        PlanError: the dense latency is not above zero, or a figure is not finite.
    """
    chosen = tuple(range(len(spec.groups)) if groups is None else (int(group) for group in groups))
    kept, networks = single_cuts(spec, chosen)
    asked = np.concatenate([spec.dense_widths[None], networks.reshape(-1, len(spec.groups))])
    found = np.asarray(latencies(asked), dtype=np.float64)
    if found.shape != (len(asked),) or not np.all(np.isfinite(found)) or found[0] <= 0:
        raise PlanError(
            f"Latency sensitivity needs one finite latency per network and a dense latency above zero; the dense one "
            f"is {found.flat[0] if found.size else 'missing'}. Check the latency model or the measurement."
        )
    saved = ((found[0] - found[1:]) / found[0]).reshape(kept.shape)
    return Sensitivity(chosen, spec.dense_widths[list(chosen)], kept, saved)


def modelled(spec: NetworkSpec, model: CostModel) -> Sensitivity:
    """The curves of every group by a cost model."""
    return sensitivity(spec, model.evaluate)


def agreement(one: Sensitivity, other: Sensitivity) -> float:
    """Spearman's rank correlation of two measurements of s over the groups that both hold.

    Raises:
        PlanError: fewer than three groups are in both.
    """
    from scipy.stats import spearmanr

    both = sorted(set(one.groups) & set(other.groups))
    if len(both) < 3:
        raise PlanError(f"A rank correlation needs at least three groups; {len(both)} were measured in both ways.")
    return float(spearmanr(one.select(both).per_unit, other.select(both).per_unit).statistic)


def spread_sample(curves: Sensitivity, count: int) -> tuple[int, ...]:
    """``count`` groups spread evenly over the ranks of s, to be measured end to end: indices in ascending order."""
    ranking = np.argsort(-curves.per_unit, kind="stable")
    places = np.unique(np.linspace(0, len(ranking) - 1, min(count, len(ranking))).round().astype(np.int64))
    return tuple(sorted(curves.groups[int(ranking[place])] for place in places))
