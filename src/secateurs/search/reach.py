"""What can be reached at all: the fastest legal network, and the error when a budget lies below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateurs.budgets import Limited
from secateurs.cost import quantity
from secateurs.errors import InfeasibleBudgetError, PlanError
from secateurs.search.elimination import Elimination
from secateurs.search.lagrangian import cheapest, relax
from secateurs.search.milp import solve_milp
from secateurs.search.problem import SLACK, Candidate, Problem, widths_of
from secateurs.search.tables import tabulate

NAMED_AT_MOST = 3
ROUNDS = 40
"""Price changes on the way to a network within several limits."""


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


def frugal(problem: Problem, elimination: Elimination) -> Candidate:
    """A network that stays within several limits at once, or comes near it: cheapest at prices that rise for the
    limits that it exceeds."""
    scale = np.maximum(np.abs(problem.limits), 1e-300)
    weights, points = np.ones(len(scale)), []
    for _ in range(ROUNDS):
        found = elimination.solve(weights / scale, worthless=True)[0]
        point = problem.candidate(widths_of(problem, found.states), found.removed)
        shares = np.array([point.predicted[c.name] for c in problem.constraints]) / scale
        points.append((float(shares.max()), point))
        if shares.max() <= 1:
            break
        weights = weights * (shares / shares.max()) ** 2
        weights = weights / weights.max()
    return min(points, key=lambda entry: entry[0])[1]


def fixed_terms(problem: Problem, point: Candidate, *, constraint: int = 0) -> list[tuple[str, float]]:
    """The costliest terms at ``point``: (name, cost), highest first, at most three."""
    alive = [t for t in problem.constraints[constraint].model.terms if point.removed.isdisjoint(t.blocks)]
    costs = sorted(((float(t.evaluate(point.widths)), t.name) for t in alive), reverse=True)
    return [(name, cost) for cost, name in costs[:NAMED_AT_MOST]]


def reach(problem: Problem) -> tuple[dict[str, Any], ...]:
    """How little each constraint's cost can be at all, and what limits it: one set of details per constraint.

    ``constraint``, ``limit``, ``unit``, ``fastest`` (cost), ``widths`` (by group name), ``removed`` (block names),
    ``at_minimum`` (group names), ``costliest`` [(term, cost)], ``offset`` (the fixed part of the cost).
    """
    return tuple(_details(problem, fastest(problem, constraint=c), c) for c in range(len(problem.constraints)))


def infeasible(problem: Problem, points: Sequence[Mapping[str, Any]] | None = None) -> InfeasibleBudgetError:
    """The error to raise when nothing legal meets all limits; ``points``: what :func:`reach` gave, where known.

    Its ``details`` are :func:`reach`'s of the first limit that cannot be met, and ``conflict``: True where every limit
    can be met alone but not together.
    """
    found = reach(problem) if points is None else points
    details = [{**d, "limit": c.limit} for d, c in zip(found, problem.constraints, strict=True)]
    short = [index for index, one in enumerate(details) if one["fastest"] > one["limit"] + SLACK * abs(one["limit"])]
    index = short[0] if short else 0
    chosen = {**details[index], "conflict": not short}
    where, unit = problem.constraints[index].where, chosen["unit"]
    if short:
        what = (
            f"Budget {quantity(chosen['limit'], unit)} of {Limited.of(chosen['constraint']).words} is below the "
            f"{'fastest' if unit == 'ms' else 'smallest'} legal network, {quantity(chosen['fastest'], unit)}"
            f"{f' ({where})' if where else ''}."
        )
    elif len(details) == 1:
        what = (
            f"This search finds no network within {quantity(chosen['limit'], unit)}, though the least that a legal one "
            f"takes is {quantity(chosen['fastest'], unit)}; knapsack would find one."
        )
    else:
        names = ", ".join(f"{Limited.of(c.name).words} {quantity(c.limit, c.model.unit)}" for c in problem.constraints)
        what = f"No legal network meets all limits at once ({names}), though each can be met alone."
    return InfeasibleBudgetError(f"{what} {_limits(chosen, len(problem.options))} {_advice(problem, chosen)}", chosen)


def _details(problem: Problem, point: Candidate, index: int) -> dict[str, Any]:
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
    }


def _limits(details: dict[str, Any], groups: int) -> str:
    unit = details["unit"]
    text = f"There {len(details['at_minimum'])} of {groups} groups are at their minimum width"
    if details["removed"]:
        text += f" and {len(details['removed'])} blocks are removed"
    if details["costliest"]:
        parts = ", ".join(f"{name} ({quantity(cost, unit)})" for name, cost in details["costliest"])
        text += f"; what still costs most is {parts}"
    if details["offset"] > 0:
        text += f", beside a fixed {quantity(details['offset'], unit)}"
    return text + "."


def _advice(problem: Problem, details: dict[str, Any]) -> str:
    if details["conflict"]:
        return "Raise one of the limits."
    advice = f"Raise the budget to at least {quantity(details['fastest'], details['unit'])}, allow narrower groups"
    if problem.spec.blocks and not problem.removable:
        return advice + ", or allow whole blocks to be removed."
    return advice + ", or unpin some."
