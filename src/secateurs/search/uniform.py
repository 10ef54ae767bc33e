"""Strategy ``uniform``: one shared keep ratio for every group, the plain rival of everything else.

Card. Formula: width = the legal width nearest to ratio x units (upwards on ties), the largest ratio that meets every
limit; with ``keep`` given: max(1, floor(keep x units + 0.5)) and no limit. Source: folklore. Cost: one batched
evaluation of the cost models. When to use: as a baseline, or without a latency model. When not: it cannot know that
layers differ. It never removes blocks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from secateurs.errors import PlanError
from secateurs.network import NetworkSpec
from secateurs.progress import Progress, silent
from secateurs.search.problem import Problem, Solution, Strategy
from secateurs.search.reach import infeasible


@dataclass(frozen=True)
class Uniform(Strategy):
    """``keep``: the fraction of units that every group keeps, 0 < keep ≤ 1; None: the largest one within budget."""

    keep: float | None = None
    name: str = "uniform"
    criterion: str | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not 0 < self.keep <= 1:
            raise PlanError(f"keep={self.keep} must lie in (0, 1]. It is the fraction of units that stays.")

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The uniformly narrowed network; nothing is random.

        Raises:
            InfeasibleBudgetError: no shared ratio meets the limits.
        """
        start = time.perf_counter()
        if self.keep is not None:
            widths = np.clip(keep_widths(problem.spec, self.keep), problem.narrowest, problem.widest)
        else:
            widths = self._largest(problem)
        best = problem.candidate(widths)
        seconds = time.perf_counter() - start
        return Solution(best.widths, best.removed, best.value, best.predicted, None, seconds, (best,))

    def _largest(self, problem: Problem) -> np.ndarray:
        ladder = ratio_ladder(problem)
        fits = np.flatnonzero(problem.fits(ladder)) if problem.constraints else np.array([len(ladder) - 1])
        if not len(fits):
            raise infeasible(problem)
        return ladder[fits[-1]]


def keep_widths(spec: NetworkSpec, keep: float) -> np.ndarray:
    """max(1, floor(keep x units + 0.5)) of every group, never below the group's own minimum, int64 [groups]."""
    units = spec.dense_widths
    return np.maximum(np.maximum(1, np.floor(keep * units + 0.5)).astype(np.int64), spec.min_widths)


def ratio_ladder(problem: Problem) -> np.ndarray:
    """Every distinct uniform network on legal widths, narrowest first, int64 [n, groups]."""
    units = problem.spec.dense_widths
    switches = [((options[:-1] + options[1:]) / 2) / n for options, n in zip(problem.options, units, strict=True)]
    ratios = np.unique(np.concatenate([np.zeros(1), *switches]))
    columns = []
    for options, switch in zip(problem.options, switches, strict=True):
        columns.append(np.asarray(options)[np.searchsorted(switch, ratios, side="right")])
    return np.unique(np.stack(columns, axis=1), axis=0) if len(ratios) == 1 else _distinct(np.stack(columns, axis=1))


def _distinct(rows: np.ndarray) -> np.ndarray:
    changed = np.concatenate([[True], np.any(rows[1:] != rows[:-1], axis=1)])
    return rows[changed]
