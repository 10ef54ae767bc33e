"""What a search starts from: the scale of its objectives, and networks that are good before any evolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from secateurs.errors import InfeasibleBudgetError
from secateurs.search.exact import solve_exact
from secateurs.search.hamp.archive import Box
from secateurs.search.hamp.encoding import Encoding
from secateurs.search.problem import Problem
from secateurs.search.reach import fastest
from secateurs.search.uniform import Uniform

UNIFORM, KNAPSACK = 5, 10
"""Budgets that uniform widths and the knapsack are solved for."""


@dataclass(frozen=True)
class Start:
    """``box``: scale of the hypervolume; ``seeds``: genomes to begin with [n, genes], dense first; ``known_rows``: how
    many stored rows there were before the search began."""

    box: Box
    seeds: np.ndarray
    known_rows: int

    def to_row(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "ideal": self.box.ideal.tolist(),
            "nadir": self.box.nadir.tolist(),
            "seeds": self.seeds.tolist(),
            "known_rows": self.known_rows,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any], genes: int) -> Start:
        """Read what :meth:`to_row` gave."""
        seeds = np.array(row["seeds"], dtype=np.int64).reshape(-1, genes)
        return cls(Box(np.array(row["ideal"]), np.array(row["nadir"])), seeds, int(row["known_rows"]))


def make_start(encoding: Encoding, *, inject: bool, known_rows: int) -> Start:
    """The start of a search. Solvers may stop by time, so the result is stored with the search and not computed again.

    The box reaches from error 0 and the least that any legal network costs to error 1 and each limit.

    Args:
        encoding: of the problem.
        inject: whether networks are put in; without them the search begins at random.
        known_rows: see :class:`Start`.
    """
    problem = encoding.problem
    least = [
        fastest(problem, constraint=index).predicted[constraint.name]
        for index, constraint in enumerate(problem.constraints)
    ]
    dense = problem.costs(problem.widest[None])[0]
    box = Box(np.array([0.0, *least]), np.array([1.0, *np.minimum(problem.limits, dense)]))
    seeds = np.empty((0, len(encoding.sizes)), dtype=np.int64)
    if inject:
        seeds = np.array(list(_injected(encoding, box)), dtype=np.int64)
        _, first = np.unique(seeds, axis=0, return_index=True)
        seeds = seeds[np.sort(first)]
    return Start(box, seeds, known_rows)


def _injected(encoding: Encoding, box: Box) -> Iterator[np.ndarray]:
    """Dense, uniform widths for some budgets, the knapsack's optimum for more, the fastest network."""
    problem = encoding.problem
    yield encoding.genome(problem.widest)
    if not problem.constraints:
        return
    for count, solve in ((UNIFORM, _uniform), (KNAPSACK, solve_exact)):
        for share in (np.arange(count) + 1) / (count + 1):
            try:
                found = solve(_with_budget(problem, box, float(share)))
            except InfeasibleBudgetError:
                continue
            yield encoding.genome(found.widths, found.removed)
    point = fastest(problem)
    yield encoding.genome(point.widths, point.removed)


def _uniform(problem: Problem) -> Any:
    return Uniform().solve(problem)


def _with_budget(problem: Problem, box: Box, share: float) -> Problem:
    """The problem with its main budget at this share of the way from the least cost to its limit."""
    first = problem.constraints[0]
    limit = float(box.ideal[1] + share * (box.nadir[1] - box.ideal[1]))
    return replace(problem, constraints=(replace(first, limit=limit), *problem.constraints[1:]))
