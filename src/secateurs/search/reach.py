"""What can be reached at all: the fastest legal network, and the error when a budget lies below it."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.search.lagrangian import cheapest, relax
from secateurs.search.milp import solve_milp
from secateurs.search.problem import SLACK, Candidate, Problem, widths_of
from secateurs.search.tables import tabulate

NAMED_AT_MOST = 3


def fastest(problem: Problem, *, constraint: int = 0, seconds: float = 20.0) -> Candidate:
    """The legal network of least cost by one constraint's model (the first by default), limits ignored.

    Removable blocks go where that is cheaper. Tables need not be monotone: a wider option may be the faster one.

    Args:
        problem: any problem with at least one constraint.
        constraint: index of the constraint whose cost is made smallest.
        seconds: time limit where tables had to be split; afterwards the best point found counts.

    Raises:
        PlanError: the problem has no constraint.
    """
    if not problem.constraints:
        raise PlanError("The fastest network is asked for, but the problem has no cost model. Give a constraint.")
    model = problem.constraints[constraint].model
    everything = frozenset(problem.removable)
    points = [problem.candidate(problem.narrowest, gone) for gone in (frozenset[int](), everything)]
    elimination = relax(problem)
    found = cheapest(elimination, constraint)
    points.append(problem.candidate(widths_of(problem, found.states), found.removed))
    if elimination.split or not elimination.tables.exact:
        free = np.full(len(problem.constraints), np.inf)
        result = solve_milp(tabulate(problem), limits=free, minimise=constraint, gap=1e-4, seconds=seconds)
        if result.states is not None:
            points.append(problem.candidate(widths_of(problem, result.states), result.removed))
    return min(points, key=lambda point: float(model.evaluate(point.widths, point.removed)))


def fixed_terms(problem: Problem, point: Candidate, *, constraint: int = 0) -> list[tuple[str, float]]:
    """The costliest terms at ``point``: (name, cost), highest first, at most three."""
    alive = [t for t in problem.constraints[constraint].model.terms if point.removed.isdisjoint(t.blocks)]
    costs = sorted(((float(t.evaluate(point.widths)), t.name) for t in alive), reverse=True)
    return [(name, cost) for cost, name in costs[:NAMED_AT_MOST]]


def infeasible(problem: Problem, point: Candidate | None = None) -> InfeasibleBudgetError:
    """The error to raise when nothing legal meets all limits.

    Its ``details``: ``constraint``, ``limit``, ``unit``, ``fastest`` (cost), ``widths`` (by group name), ``removed``
    (block names), ``at_minimum`` (group names), ``costliest`` [(term, cost)], ``conflict`` (True where every limit
    can be met alone but not together).
    """
    points = [fastest(problem, constraint=c) if c or point is None else point for c in range(len(problem.constraints))]
    short = [c for c, p in enumerate(points) if not _meets(problem, p, c)]
    index = short[0] if short else 0
    details = _details(problem, points[index], index, conflict=not short)
    where = problem.constraints[index].where
    unit, place = details["unit"], f" ({where})" if where else ""
    if short:
        what = (
            f"Budget {details['limit']:.4g} {unit} of {details['constraint']} is below the fastest legal network, "
            f"{details['fastest']:.4g} {unit}{place}."
        )
    else:
        names = ", ".join(f"{c.name} {c.limit:.4g} {c.model.unit}" for c in problem.constraints)
        what = f"No legal network meets all limits at once ({names}), though each can be met alone."
    return InfeasibleBudgetError(
        f"{what} {_limits(details, len(problem.options))} {_advice(problem, details)}", details
    )


def _meets(problem: Problem, point: Candidate, index: int) -> bool:
    constraint = problem.constraints[index]
    return point.predicted[constraint.name] <= constraint.limit + SLACK * abs(constraint.limit)


def _details(problem: Problem, point: Candidate, index: int, *, conflict: bool) -> dict[str, Any]:
    spec, constraint = problem.spec, problem.constraints[index]
    inside = [not point.removed.isdisjoint(blocks) for blocks in problem.inner_blocks]
    at_minimum = [
        group.name for g, group in enumerate(spec.groups) if not inside[g] and point.widths[g] == problem.narrowest[g]
    ]
    return {
        "constraint": constraint.name,
        "limit": constraint.limit,
        "unit": constraint.model.unit,
        "fastest": point.predicted[constraint.name],
        "widths": {group.name: int(w) for group, w in zip(spec.groups, point.widths, strict=True)},
        "removed": [spec.blocks[b].name for b in sorted(point.removed)],
        "at_minimum": at_minimum,
        "costliest": fixed_terms(problem, point, constraint=index),
        "offset": constraint.model.offset,
        "conflict": conflict,
    }


def _limits(details: dict[str, Any], groups: int) -> str:
    unit = details["unit"]
    text = f"There {len(details['at_minimum'])} of {groups} groups are at their minimum width"
    if details["removed"]:
        text += f" and {len(details['removed'])} blocks are removed"
    if details["costliest"]:
        parts = ", ".join(f"{name} ({cost:.3g} {unit})" for name, cost in details["costliest"])
        text += f"; what still costs most is {parts}"
    if details["offset"] > 0:
        text += f", beside a fixed {details['offset']:.3g} {unit}"
    return text + "."


def _advice(problem: Problem, details: dict[str, Any]) -> str:
    if details["conflict"]:
        return "Raise one of the limits."
    advice = f"Raise the budget to at least {details['fastest']:.4g} {details['unit']}, allow narrower groups"
    if problem.spec.blocks and not problem.removable:
        return advice + ", or allow whole blocks to be removed."
    return advice + ", or unpin some."
