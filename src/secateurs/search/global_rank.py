"""Strategy ``global-rank``: one threshold on the scores of all groups.

Card. Formula: a unit stays while its score (the step of its group's value curve) is at least τ; widths are then the
nearest legal ones; the smallest τ whose network meets every limit. Source: the global ranking of network slimming,
Taylor and group-norm pruners. Cost: one batched evaluation of the cost models. When to use: as the baseline that most
tools offer. When not: it sees what a unit is worth but not what it costs. It never removes blocks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from secateurs.errors import PlanError
from secateurs.progress import Progress, silent
from secateurs.search.problem import Problem, Solution, Strategy
from secateurs.search.reach import infeasible

THRESHOLDS_AT_MOST = 4096


@dataclass(frozen=True)
class GlobalRank(Strategy):
    """Nothing to set."""

    name: str = "global-rank"
    criterion: str | None = None

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The network above one shared threshold; nothing is random.

        Raises:
            InfeasibleBudgetError: no threshold meets the limits.
            PlanError: the problem has no constraint.
        """
        start = time.perf_counter()
        if not problem.constraints:
            raise PlanError("Strategy global-rank needs a budget. Give --latency.")
        ladder = threshold_ladder(problem)
        fits = np.flatnonzero(problem.fits(ladder))
        if not len(fits):
            raise infeasible(problem)
        best = problem.candidate(ladder[fits[-1]])
        seconds = time.perf_counter() - start
        return Solution(best.widths, best.removed, best.value, best.predicted, None, seconds, (best,))


def threshold_ladder(problem: Problem) -> np.ndarray:
    """Every distinct network above a threshold on legal widths, narrowest first, int64 [n, groups]."""
    steps = [-np.sort(-np.diff(np.asarray(curve, dtype=np.float64))) for curve in problem.values]
    thresholds = np.unique(np.concatenate([*steps, [np.inf]]))[::-1]
    if len(thresholds) > THRESHOLDS_AT_MOST:
        thresholds = thresholds[np.linspace(0, len(thresholds) - 1, THRESHOLDS_AT_MOST).round().astype(np.int64)]
    columns = []
    for options, step in zip(problem.options, steps, strict=True):
        above = np.searchsorted(-step, -thresholds, side="right")
        middles = (options[:-1] + options[1:]) / 2
        columns.append(np.asarray(options)[np.searchsorted(middles, above, side="right")])
    rows = np.stack(columns, axis=1)
    changed = np.concatenate([[True], np.any(rows[1:] != rows[:-1], axis=1)])
    return rows[changed]
