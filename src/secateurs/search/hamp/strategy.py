"""Strategy ``hamp``: a Pareto front by memetic multi-objective evolution, judged by real evaluations."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace

from secateurs.progress import Progress, silent
from secateurs.search.hamp.search import HampSettings, Outcome, Search
from secateurs.search.problem import Candidate, Problem, Solution, Strategy
from secateurs.search.reach import infeasible


@dataclass(frozen=True)
class Hamp(Strategy):
    """HAMP-style search: our reading of Hong et al., Fundamental Research 4(4), 2024.

    docs/methods.md, "HAMP objectives and encoding" and what follows it.

    Card. Objectives: error on a fixed validation subset after batch-norm re-estimation, and every cost model of the
    problem. Method: evolution on legal widths and removable blocks; a portfolio of environmental selections shares the
    population by the hypervolume that its survivors' children bring; every fifth generation a local search around the
    front, in which a surrogate of the error is consulted while it ranks well. Injected are the dense network, uniform
    widths and knapsack optima. Ours: all parameters, the portfolio's members, the surrogates, the injection, and that
    offspring are bred in excess and picked by the surrogate, asked from 3 evaluations per group on (searches
    on an emulator of resnet56's evaluations ended higher so than with 5). Cost: some
    hundred to thousands of real evaluations. When to use: to see what accuracy each latency costs before deciding, or
    with several costs. When not: for one budget; ``knapsack`` answers in seconds. ``again``: evaluations of a further
    solve of the same object, as a closed loop asks for: it starts from what is known.
    """

    settings: HampSettings = field(default_factory=HampSettings)
    again: int = 60
    name: str = "hamp"
    criterion: str | None = None
    evaluates: bool = True
    _solved: list[str] = field(default_factory=list, compare=False, repr=False)

    def solve(self, problem: Problem, *, seed: int = 0, progress: Progress = silent) -> Solution:
        """The network of least error within the limits; ``candidates`` is the whole front, least error first.

        ``details``: ``objectives`` (names), ``history`` (per generation), ``evaluations``, ``computed``, ``stopped``,
        ``seeds`` (main cost, error of the networks it began with), ``box`` (scale of the hypervolume).

        Raises:
            PlanError: the problem has no evaluator, no cost model, or more than three.
            InfeasibleBudgetError: no network within the limits was found.
        """
        began, settings = time.perf_counter(), self.settings
        if problem.rows is None and problem.evaluator is not None:
            problem = replace(problem, rows=getattr(problem.evaluator, "rows", None))
        if self._solved:
            settings = replace(settings, evaluations=self.again)
        search = Search(problem, settings, seed, progress)
        self._solved.append(search.run)
        outcome = search.go()
        front = front_of(search, outcome)
        if not front:
            raise infeasible(problem)
        best = front[0]
        details = {
            "objectives": ["error", *(constraint.name for constraint in problem.constraints)],
            "history": [asdict(line) for line in outcome.history],
            "evaluations": outcome.evaluations,
            "computed": outcome.computed,
            "stopped": outcome.stopped,
            "seeds": seed_points(search),
            "box": {"ideal": outcome.archive.box.ideal.tolist(), "nadir": outcome.archive.box.nadir.tolist()},
        }
        seconds = time.perf_counter() - began
        return Solution(best.widths, best.removed, best.value, best.predicted, None, seconds, tuple(front), details)


def seed_points(search: Search) -> list[tuple[float, float]]:
    """(main cost, error) of the injected networks."""
    seeds = search.start.seeds
    seeds = seeds[[search.judging.known(genome) for genome in seeds]] if len(seeds) else seeds
    if not len(seeds):
        return []
    return list(zip(search.encoding.costs(seeds)[:, 0].tolist(), search.judging.errors(seeds).tolist(), strict=True))


def front_of(search: Search, outcome: Outcome) -> list[Candidate]:
    """The archive as candidates, least error first, then cheapest."""
    archive = outcome.archive
    order = sorted(range(len(archive)), key=lambda index: tuple(archive.objectives[index]))
    found = []
    for index in order:
        widths, removed = search.encoding.network(archive.genes[index])
        found.append(search.problem.candidate(widths, removed, accuracy=1.0 - float(archive.objectives[index, 0])))
    return found


__all__ = ["Hamp", "HampSettings", "front_of"]
