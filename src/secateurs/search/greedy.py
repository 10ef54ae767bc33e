"""Strategy ``greedy``: NetAdapt-style narrowing, one group a round; a rival, not a recommendation.

Card. Formula: round i must save ΔR₀ · decay^i of the dense cost; every group proposes its widest option that alone
saves that much, and the proposal that loses the least value is taken, until every limit is met. Source: NetAdapt,
Yang et al. 2018, arXiv 1804.03230, with its code's defaults 2.5 % and 0.96; value curves stand in for its short
fine-tuning of every proposal. Blocks are never removed. Cost: (rounds x options) cost look-ups. When to use: to show
what an exact solver buys. When not: on staircases, a small saving may cost a whole step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from secateurs.errors import PlanError
from secateurs.progress import Progress, silent
from secateurs.search.climb import neighbours
from secateurs.search.problem import Problem, Solution, Strategy
from secateurs.search.reach import infeasible


@dataclass(frozen=True)
class Greedy(Strategy):
    """``share``: fraction of the dense cost that the first round saves; ``decay``: factor per round."""

    share: float = 0.025
    decay: float = 0.96
    name: str = "greedy"
    criterion: str | None = None

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The narrowed network; nothing is random.

        Raises:
            InfeasibleBudgetError: narrowing one group at a time ends above a limit.
            PlanError: the problem has no constraint.
        """
        start = time.perf_counter()
        if not problem.constraints:
            raise PlanError("Strategy greedy needs a budget. Give --latency.")
        widths, goal = problem.widest.copy(), self.share
        with progress.task("greedy search", None) as task:
            while not bool(problem.fits(widths)):
                narrower = self._round(problem, widths, goal)
                if narrower is None:
                    raise infeasible(problem)
                widths, goal = narrower, goal * self.decay
                task.advance()
        best = problem.candidate(widths)
        seconds = time.perf_counter() - start
        return Solution(best.widths, best.removed, best.value, best.predicted, None, seconds, (best,))

    def _round(self, problem: Problem, widths: np.ndarray, goal: float) -> np.ndarray | None:
        """The next network: of the proposals that save ``goal``, the most valuable; else what saves most per loss."""
        moves, _ = neighbours(problem, widths, set())
        moves = moves[np.all(moves <= widths, axis=1)]
        before = excess(problem, widths[None, :])[0]
        saved = before - excess(problem, moves)
        moves, saved = moves[saved > 1e-12], saved[saved > 1e-12]
        if not len(moves):
            return None
        values, enough = problem.value(moves), saved >= min(goal, before - 1.0 + 1e-12)
        if enough.any():
            return moves[enough][int(np.argmax(values[enough]))]
        return moves[int(np.argmax(saved))]


def excess(problem: Problem, widths: np.ndarray) -> np.ndarray:
    """Largest cost relative to its limit, [n] for widths [n, groups]; above 1 means over budget."""
    scale = np.maximum(np.abs(problem.limits), 1e-300)
    return np.max((problem.costs(widths) - problem.limits) / scale, axis=-1) + 1.0
