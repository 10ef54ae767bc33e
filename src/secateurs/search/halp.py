"""Strategy ``halp``: a HALP-style dynamic program; a rival, not a recommendation.

Card. Formula: the budget falls geometrically over ``steps``; in each step the cost of a group's next option is the
staircase increment of its producing operators with their input widths frozen at the last step's, and a 0/1 knapsack
over these increments (strongest first, an item only where its predecessor is in the table entry it extends) chooses.
Source: HALP, Shen et al., arXiv 2110.10811; written anew from its description (docs/methods.md, "HALP-style program")
with its two weaknesses kept:
the precedence test sees one table entry only, and a narrower input earns no credit inside a step. Blocks are never
removed. Only the first constraint steers the program. Cost: steps x items x buckets. When to use: to show what
an exact solver buys.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from secateurs.errors import PlanError
from secateurs.network import AxisSpec
from secateurs.progress import Progress, silent
from secateurs.search.problem import Problem, Solution, Strategy
from secateurs.search.reach import infeasible


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
                if bool(problem.fits(widths)):
                    found = self._better(problem, found, widths)
                task.advance()
            for _ in range(self.steps):
                if found is not None:
                    break
                widths = self._step(problem, widths, limit)
                found = widths if bool(problem.fits(widths)) else None
        if found is None:
            raise infeasible(problem)
        best, seconds = problem.candidate(found), time.perf_counter() - start
        return Solution(best.widths, best.removed, best.value, best.predicted, None, seconds, (best,))

    @staticmethod
    def _better(problem: Problem, found: np.ndarray | None, widths: np.ndarray) -> np.ndarray:
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
        items = sorted(_items(problem, curves), key=lambda item: (-item[0], item[1], item[2]))
        counts = _precedence_knapsack([(v, g, i, int(np.ceil(c / unit - 1e-9))) for v, g, i, c in items], self.buckets)
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


def _items(problem: Problem, curves: list[np.ndarray]) -> list[tuple[float, int, int, float]]:
    """(value, group, option, cost) of widening from one option to the next; values never rise within a group."""
    found = []
    for group, (options, curve) in enumerate(zip(problem.options, curves, strict=True)):
        worth = np.diff(np.asarray(problem.values[group])[options])
        for index, value in enumerate(np.minimum.accumulate(worth) if len(worth) else worth):
            found.append((float(value), group, index, float(curve[index + 1] - curve[index])))
    return found


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
