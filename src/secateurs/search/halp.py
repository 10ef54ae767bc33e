"""Strategy ``halp``: a HALP-style dynamic program; a rival, not a recommendation.

Card. Formula: the budget falls geometrically over ``steps``; in each step the cost of a group's next option is the
staircase increment of its producing operators with their input widths frozen at the last step's, and a 0/1 knapsack
over these increments (most valuable unit first, an item only where its predecessor is in the table entry it extends)
chooses. Units of a layer that reads the network's input are worth more than all others. Source: HALP, Shen et al.,
arXiv 2110.10811; written anew from its description (docs/methods.md, "HALP-style program") with its two weaknesses
kept: the precedence test sees one table entry only, and a narrower input earns no credit inside a step. What that
leaves of the budget, further steps take up, whose targets are chosen so that the network's own cost meets the limit.
Blocks are never removed. Only the first constraint steers the program. Cost: steps x items x buckets. When to use: to
show what an exact solver buys.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from secateurs.errors import PlanError
from secateurs.network import AxisSpec
from secateurs.progress import Progress, silent
from secateurs.search.problem import Problem, Solution, Strategy
from secateurs.search.reach import infeasible

_CLOSER = 10
"""Halvings of the interval of targets."""
_GUARD = 1e4
"""What a unit of a first layer is worth, in values of the whole network."""


@dataclass(frozen=True)
class Halp(Strategy):
    """``steps`` of the falling budget; ``buckets`` of the table's capacity axis."""

    steps: int = 10
    buckets: int = 1000
    name: str = "halp"
    criterion: str | None = None

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The narrowed network; nothing is random.

        Raises:
            InfeasibleBudgetError: the last step ends above a limit.
            PlanError: the problem has no constraint.
        """
        start = time.perf_counter()
        if not problem.constraints:
            raise PlanError("Strategy halp needs a budget. Give --latency.")
        widths, limit = problem.widest.copy(), problem.constraints[0].limit
        dense = float(problem.costs(widths)[0])
        found: np.ndarray | None = None
        with progress.task("dynamic program", self.steps) as task:
            for step in range(1, self.steps + 1):
                target = dense * (limit / dense) ** (step / self.steps) if dense > limit > 0 else limit
                widths = self._step(problem, widths, target)
                found = self._better(problem, found, widths)
                task.advance()
        for _ in range(self.steps):
            before, found = found, self._refined(problem, widths if found is None else found, found, limit)
            if before is not None and found is not None and np.array_equal(before, found):
                break
        if found is None:
            raise infeasible(problem)
        best, seconds = problem.candidate(found), time.perf_counter() - start
        return Solution(best.widths, best.removed, best.value, best.predicted, None, seconds, (best,))

    def _refined(
        self, problem: Problem, current: np.ndarray, found: np.ndarray | None, limit: float
    ) -> np.ndarray | None:
        """The best network of steps from ``current`` whose targets close in on the one that ends at the limit: inputs
        change with a step, so that what it counted is not what its network takes."""
        low, high = 0.0, 2.0 * limit
        for _ in range(_CLOSER):
            target = (low + high) / 2
            widths = self._step(problem, current, target)
            found = self._better(problem, found, widths)
            low, high = (target, high) if bool(problem.fits(widths)) else (low, target)
        return found

    @staticmethod
    def _better(problem: Problem, found: np.ndarray | None, widths: np.ndarray) -> np.ndarray | None:
        if not bool(problem.fits(widths)):
            return found
        if found is None or float(problem.value(widths)) >= float(problem.value(found)):
            return widths
        return found

    def _step(self, problem: Problem, current: np.ndarray, target: float) -> np.ndarray:
        """One knapsack with input widths frozen at ``current``."""
        curves = _frozen_costs(problem, current)
        rest = float(problem.costs(current)[0]) - sum(float(c[_at(problem, g, current)]) for g, c in enumerate(curves))
        room = target - rest - sum(float(curve[0]) for curve in curves)
        if room <= 0:
            return problem.narrowest.copy()
        unit = room / self.buckets
        items = sorted(_items(problem, curves), key=lambda item: (-item.rate, item.group, item.option))
        bought = [(one.value, one.group, one.option, int(np.ceil(one.cost / unit - 1e-9))) for one in items]
        counts = _precedence_knapsack(bought, self.buckets)
        counts = np.pad(counts, (0, max(0, len(problem.options) - len(counts))))[: len(problem.options)]
        return np.array([options[int(n)] for options, n in zip(problem.options, counts, strict=True)])


def _at(problem: Problem, group: int, widths: np.ndarray) -> int:
    return int(np.searchsorted(problem.options[group], widths[group]))


def _frozen_costs(problem: Problem, current: np.ndarray) -> list[np.ndarray]:
    """Per group the cost of every option: its producing operators, all else at ``current``."""
    curves = []
    for group, options in enumerate(problem.options):
        candidates = np.repeat(current[None, :], len(options), axis=0)
        candidates[:, group] = options
        total = np.zeros(len(options))
        for term in problem.constraints[0].model.terms:
            if _makes(term.outputs, group):
                inputs = None if term.inputs is None else term.inputs.length(current)
                zero = np.zeros(1, dtype=np.int64)
                out = zero if term.outputs is None else term.outputs.length(candidates)
                total = total + np.asarray(term.cost(zero if inputs is None else inputs, out), dtype=np.float64)
        curves.append(total)
    return curves


def _makes(axis: AxisSpec | None, group: int) -> bool:
    return axis is not None and any(part == group for part, _ in axis.parts)


@dataclass(frozen=True)
class _Item:
    """Widening ``group`` from ``option`` to the next; ``rate``: value of a unit of it."""

    group: int
    option: int
    cost: float
    value: float
    rate: float


def _items(problem: Problem, curves: list[np.ndarray]) -> Iterator[_Item]:
    """Every step of every group. Steps hold unlike numbers of units: it is a unit's value that never rises within a
    group."""
    guarded = _first_groups(problem)
    for group, (options, curve) in enumerate(zip(problem.options, curves, strict=True)):
        units = np.diff(options)
        rates = np.minimum.accumulate(np.diff(np.asarray(problem.values[group])[options]) / units)
        rates = rates + _GUARD * _most(problem) * (group in guarded)
        for option, (rate, count) in enumerate(zip(rates, units, strict=True)):
            cost = float(curve[option + 1] - curve[option])
            yield _Item(group, option, cost, float(rate * count), float(rate))


def _first_groups(problem: Problem) -> set[int]:
    """Groups that layers make which read the network's input, of a length that never changes."""
    terms = problem.constraints[0].model.terms
    first = [term.outputs for term in terms if term.inputs is not None and not term.inputs.parts]
    return {part for axis in first if axis is not None for part, _ in axis.parts}


def _most(problem: Problem) -> float:
    return float(sum(np.abs(np.asarray(values)).max() for values in problem.values))


def _precedence_knapsack(items: list[tuple[float, int, int, int]], buckets: int) -> np.ndarray:
    """Options taken per group [groups], by a 0/1 table over the items and ``buckets`` of capacity."""
    groups = 1 + max((group for _, group, _, _ in items), default=-1)
    best = np.zeros(buckets + 1)
    taken = np.zeros((buckets + 1, groups), dtype=np.int16)
    capacity = np.arange(buckets + 1)
    for value, group, index, cost in items:
        source = np.minimum(capacity - cost, buckets)
        inside = np.maximum(source, 0)
        gain = best[inside] + value
        use = (source >= 0) & (taken[inside, group] == index) & (gain > best)
        if use.any():
            rows = taken[inside[use]]
            rows[:, group] += 1
            best[use], taken[use] = gain[use], rows
    return taken[-1] if groups else np.zeros(0, dtype=np.int16)
