"""The exact solver behind ``knapsack`` and ``splamp``: linearise, solve, re-score with the full models, repeat."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from secateurs.errors import PlanError
from secateurs.progress import Progress, silent
from secateurs.search.climb import climb
from secateurs.search.milp import solve_milp
from secateurs.search.problem import SLACK, Candidate, Problem, Solution
from secateurs.search.reach import fastest, infeasible
from secateurs.search.tables import tabulate

ROUNDS = 6
"""Most solves: a plan that the full models put above a limit is cut off by a tighter limit and solved again."""


@dataclass(frozen=True)
class Effort:
    """How long to try: stop at this relative ``gap`` or after ``seconds``; ``breakpoints`` per summed axis."""

    gap: float = 1e-4
    seconds: float = 60.0
    breakpoints: int = 256


def solve_exact(problem: Problem, effort: Effort | None = None, progress: Progress = silent) -> Solution:
    """The network of largest value within all limits, with the proven gap.

    Args:
        problem: with at least one constraint.
        effort: gap, time limit and resolution of summed axes.
        progress: told each solve.

    Raises:
        InfeasibleBudgetError: nothing legal meets the limits.
        PlanError: the problem has no constraint.
    """
    effort, start = effort or Effort(), time.perf_counter()
    if not problem.constraints:
        raise PlanError("An exact search needs a budget. Give --latency, or use the strategy uniform with keep=RATIO.")
    with progress.task("search", None) as task:
        best, bound = _rounds(problem, effort, start, task.advance)
    gap = max(0.0, bound - best.value) / max(abs(best.value), 1e-12) if np.isfinite(bound) else None
    return Solution(best.widths, best.removed, best.value, best.predicted, gap, time.perf_counter() - start, (best,))


def _rounds(problem: Problem, effort: Effort, start: float, advance: object) -> tuple[Candidate, float]:
    tables, limits = tabulate(problem, breakpoints=effort.breakpoints), problem.limits.copy()
    best: Candidate | None = None
    bound, sharpened = np.inf, tables.exact
    for _ in range(ROUNDS):
        left = effort.seconds - (time.perf_counter() - start)
        result = solve_milp(tables, limits=limits, gap=effort.gap, seconds=left)
        bound = min(bound, result.bound) if np.array_equal(limits, problem.limits) else bound
        if result.states is None:
            break
        found = problem.candidate(_widths(problem, result.states), result.removed)
        over = np.array([found.predicted[c.name] for c in problem.constraints]) - problem.limits
        if np.any(over > SLACK * np.abs(problem.limits)):
            limits = limits - np.maximum(0.0, 2.0 * over)
            continue
        best = found if best is None or found.value > best.value else best
        if sharpened or result.seconds_exceeded:
            break
        tables, sharpened = tabulate(problem, breakpoints=effort.breakpoints, around=best.widths), True
    if best is None:
        best = _fallback(problem)
    return (best if tables.exact and bound <= best.value * (1 + effort.gap) else climb(problem, best)), bound


def _widths(problem: Problem, states: np.ndarray) -> np.ndarray:
    return np.array([options[min(s, len(options) - 1)] for s, options in zip(states, problem.options, strict=True)])


def _fallback(problem: Problem) -> Candidate:
    """A feasible point where the solver had none in time: the fastest network, if it meets all limits."""
    point = fastest(problem)
    if not bool(problem.fits(point.widths, point.removed)):
        raise infeasible(problem, point)
    return point
