"""The exact solver behind ``knapsack`` and ``splamp``.

Three steps: prices bound the value of every option (:mod:`lagrangian`); HiGHS solves the few options that could still
be in the optimum (:mod:`milp`), more of them until the rest is proven useless; the plan is re-scored by the full cost
models and solved again while a rounded sum or the solver's tolerance left it outside a limit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.progress import Progress, Task, silent
from secateurs.search.climb import climb
from secateurs.search.elimination import Best, Elimination
from secateurs.search.labels import TooManyLabels, best_labels
from secateurs.search.lagrangian import Dual, relax, solve_dual, surviving
from secateurs.search.milp import solve_milp
from secateurs.search.problem import SLACK, Candidate, Problem, Solution, widths_of
from secateurs.search.reach import fastest, frugal, infeasible
from secateurs.search.tables import tabulate

ROUNDS = 6
"""Most solves of one program: a plan that the full models put above a limit is cut off by a tighter one."""

CORE = 4
"""Options per group in the first core, on average."""

BEAM = 64
"""Labels per list where complete lists grow too long."""


@dataclass(frozen=True)
class Effort:
    """How long to try: stop at this relative ``gap`` or after ``seconds``; ``breakpoints`` per summed axis.

    ``method``: ``auto``, or ``milp`` to leave everything after the bounds to HiGHS.
    """

    gap: float = 1e-5
    seconds: float = 20.0
    breakpoints: int = 256
    method: str = "auto"


@dataclass
class _Search:
    """The best plan so far and the clock."""

    problem: Problem
    effort: Effort
    start: float
    best: Candidate | None = None

    @property
    def left(self) -> float:
        return self.effort.seconds - (time.perf_counter() - self.start)

    def offer(self, candidate: Candidate) -> None:
        """Take the candidate if it is within the limits and better."""
        over = np.array([candidate.predicted[c.name] for c in self.problem.constraints]) - self.problem.limits
        if np.all(over <= SLACK * np.abs(self.problem.limits)) and (
            self.best is None or candidate.value > self.best.value
        ):
            self.best = candidate

    def floor(self) -> float:
        """Bounds up to this value prove an option useless at the wanted gap."""
        return -np.inf if self.best is None else self.best.value + self.effort.gap * abs(self.best.value)


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
    search = _Search(problem, effort, start)
    with progress.task("search", None) as task:
        elimination = relax(problem, breakpoints=effort.breakpoints)
        dual = solve_dual(elimination)
        task.advance(note=f"bound {dual.bound:.6g}")
        alone = _one_binding(problem, dual, effort, progress)
        if alone is not None:
            return replace(alone, seconds=time.perf_counter() - start)
        _offer_best(search, dual.points)
        bound = _lists(search, elimination, dual) if effort.method == "auto" else dual.bound
        if search.best is None or bound > search.floor():
            bound = min(bound, _cores(search, dual, task))
    best = search.best or _fallback(problem, elimination)
    gap = max(0.0, bound - best.value) / max(abs(best.value), 1e-12) if np.isfinite(bound) else None
    seconds = time.perf_counter() - start
    return Solution(best.widths, best.removed, best.value, best.predicted, gap, seconds, (best,))


def _one_binding(problem: Problem, dual: Dual, effort: Effort, progress: Progress) -> Solution | None:
    """The optimum without the budgets that cost nothing, if it is within them too; much quicker to find."""
    binding = np.flatnonzero(dual.prices)
    if len(problem.constraints) == 1 or len(binding) != 1:
        return None
    try:
        found = solve_exact(replace(problem, constraints=(problem.constraints[int(binding[0])],)), effort, progress)
    except InfeasibleBudgetError:
        return None
    if not bool(problem.fits(found.widths, found.removed)):
        return None
    best = problem.candidate(found.widths, found.removed)
    return replace(found, predicted=best.predicted, candidates=(best,))


def _offer_best(search: _Search, points: tuple[Best, ...]) -> None:
    """Offer the first of the points, by value, that is within the limits: full models are slow, so few are asked."""
    ceiling = search.problem.limits + SLACK * np.abs(search.problem.limits)
    within = [point for point in points if np.all(point.costs <= ceiling)]
    for point in sorted(within, key=lambda point: -point.value):
        search.offer(search.problem.candidate(widths_of(search.problem, point.states), point.removed))
        if search.best is not None:
            return


def _lists(search: _Search, elimination: Elimination, dual: Dual) -> float:
    """Close the gap by label lists where they apply; the proven bound.

    The value to beat is guessed near the bound first, where few labels survive, and lowered while nothing beats it.
    """
    single = len(dual.prices) == 1 and dual.prices[0] > 0
    if search.best is None or elimination.split or not elimination.tables.exact or not single:
        return dual.bound
    price, bound = float(dual.prices[0]), dual.bound
    until = time.perf_counter() + search.left / 3
    for share in (1 / 64, 1 / 16, 1 / 4, 1.0):
        floor = max(search.floor(), dual.bound - share * (dual.bound - search.best.value))
        if bound <= search.floor():
            break
        for beam in (None, BEAM):
            try:
                found = best_labels(elimination, [price, 0.6 * price, 1.6 * price], floor, beam=beam, until=until)
            except TooManyLabels:
                until = max(until, time.perf_counter() + search.left / 6)
                continue
            if found.states is not None:
                search.offer(search.problem.candidate(widths_of(search.problem, found.states), found.removed))
            if not found.complete:
                return bound
            bound = min(bound, max(floor, search.best.value))
            break
        else:
            return bound
    return bound


def _cores(search: _Search, dual: Dual, task: Task) -> float:
    """Solve growing cores until the options outside are proven useless; the proven bound."""
    every = (
        np.sort(np.concatenate([dual.bound - bounds for bounds in dual.marginals])) if dual.marginals else np.zeros(1)
    )
    wanted, bound = CORE * max(1, len(dual.marginals)), dual.bound
    if search.best is not None:
        search.offer(climb(search.problem, search.best))
    while True:
        if search.best is not None and dual.bound <= search.floor():
            return dual.bound
        depth = float(every[min(wanted, len(every)) - 1])
        masks, left_out, hopeless = surviving(search.problem, dual, search.floor(), depth)
        core = replace(search.problem, options=tuple(o[m] for o, m in zip(search.problem.options, masks, strict=True)))
        complete = not np.isfinite(left_out)
        proven = _solve_core(search, core)
        task.advance(note="" if search.best is None else f"value {search.best.value:.6g}")
        bound = min(bound, max(proven, left_out, hopeless))
        done = search.best is not None and bound <= search.floor()
        if complete or done or search.left <= 0:
            return bound
        wanted *= 4


def _solve_core(search: _Search, core: Problem) -> float:
    """Solve one program, offering every plan met; the proven bound of the core's value."""
    tables = tabulate(core, breakpoints=search.effort.breakpoints)
    limits, bound, sharpened = core.limits.copy(), np.inf, tables.exact
    for _ in range(ROUNDS):
        result = solve_milp(tables, limits=limits, gap=search.effort.gap / 4, seconds=search.left)
        if tables.exact and np.array_equal(limits, core.limits):
            bound = min(bound, result.bound)
        if result.states is None:
            break
        found = search.problem.candidate(widths_of(core, result.states), result.removed)
        over = np.array([found.predicted[c.name] for c in core.constraints]) - core.limits
        if np.any(over > SLACK * np.abs(core.limits)):
            limits = limits - np.maximum(0.0, 2.0 * over)
            continue
        search.offer(found)
        if result.seconds_exceeded or (sharpened and tables.exact):
            break
        if sharpened:
            search.offer(climb(search.problem, found))
            break
        tables, sharpened = tabulate(core, breakpoints=search.effort.breakpoints, around=found.widths), True
    return bound


def _fallback(problem: Problem, elimination: Elimination) -> Candidate:
    """A feasible point where the solver had none in time: a cheap network, if it meets all limits."""
    point = frugal(problem, elimination)
    if not bool(problem.fits(point.widths, point.removed)):
        point = fastest(problem)
    if not bool(problem.fits(point.widths, point.removed)):
        raise infeasible(problem)
    return point
