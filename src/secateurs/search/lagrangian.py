"""Prices of the constraints: the Lagrangian dual, solved exactly, with what it says about every option.

With prices p ≥ 0 the maximum of value - p · (costs - limits) over all networks is an upper bound of the optimum
(:mod:`secateurs.search.elimination` computes it exactly); the best prices make it smallest. The same pass bounds the
value of every network that uses a given option, so that most options are proven useless before HiGHS sees them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog

from secateurs.search.elimination import Best, Elimination
from secateurs.search.problem import SLACK, Problem
from secateurs.search.tables import Tables, tabulate

STEPS = 60
"""Most evaluations of the dual."""

ENTRIES_AT_MOST = 8_000_000
"""Most table entries of one evaluation (some 50 ms); coarser tables with more copies beyond that."""


@dataclass(frozen=True)
class Dual:
    """``bound``: upper bound of the value; ``prices``; ``points``: maximisers met on the way (not all within limits).

    ``marginals``: per group the bound of every option, float64 [options]; ``blocks``: per removable block the bounds
    (kept, removed).
    """

    bound: float
    prices: np.ndarray
    points: tuple[Best, ...]
    marginals: tuple[np.ndarray, ...]
    blocks: dict[int, tuple[float, float]] = field(default_factory=dict)


def relax(problem: Problem, *, breakpoints: int = 256) -> Elimination:
    """The problem ready for :func:`solve_dual`, with intermediate tables of bearable size.

    Long sums are rounded more coarsely before variables are copied.
    """
    for points in (breakpoints, breakpoints // 2, breakpoints // 4, breakpoints // 8):
        tables = tabulate(problem, breakpoints=points, optimistic=True)
        if sum(s.high.size * tables.variables[s.total].size for s in tables.sums) > ENTRIES_AT_MOST:
            continue
        elimination = Elimination(tables, largest=1 << 20)
        if elimination.entries <= ENTRIES_AT_MOST and not elimination.split:
            return elimination
    for bits in (18, 16):
        elimination = Elimination(tables, largest=1 << bits)
        if elimination.entries <= ENTRIES_AT_MOST:
            break
    return elimination


def cheapest(elimination: Elimination, constraint: int) -> Best:
    """The network of least cost by one constraint; exact where no variable was copied."""
    prices = np.zeros(len(elimination.tables.limits))
    prices[constraint] = 1.0
    return elimination.solve(prices, worthless=True)[0]


def solve_dual(elimination: Elimination) -> Dual:
    """The best prices, and the bounds they give."""
    tables = elimination.tables
    first = elimination.solve(np.zeros(len(tables.limits)))[0]
    if _within(first.costs, tables):
        prices, points = np.zeros(len(tables.limits)), [first]
    elif len(tables.limits) == 1:
        prices, points = _one_price(elimination, first)
    else:
        prices, points = _many_prices(elimination, first)
    best, marginals = elimination.solve(prices, marginals=True)
    count, groups = len(tables.variables), len(tables.values)
    blocks = {b: (float(m[0]), float(m[1])) for b, m in zip(elimination.blocks, marginals[count:], strict=True)}
    options = tuple(marginals[g][:-1] if tables.variables[g].blocks else marginals[g] for g in range(groups))
    return Dual(best.bound, prices, (*points, best), options, blocks)


def _within(costs: np.ndarray, tables: Tables) -> bool:
    return bool(np.all(costs <= tables.limits + SLACK * np.abs(tables.limits)))


def _one_price(elimination: Elimination, over: Best) -> tuple[np.ndarray, list[Best]]:
    """Cut the gap between a maximiser over the limit and one within until their line is a facet of the dual."""
    tables = elimination.tables
    limit = float(tables.limits[0])
    under = cheapest(elimination, 0)
    points = [over, under]
    if not _within(under.costs, tables):
        return np.zeros(1), points
    price = 0.0
    for _ in range(STEPS):
        price = max(0.0, (over.value - under.value) / float(over.costs[0] - under.costs[0]))
        found = elimination.solve(np.array([price]))[0]
        line = over.value - price * (float(over.costs[0]) - limit)
        if found.bound <= line + 1e-10 * max(1.0, abs(line)):
            break
        points.append(found)
        if float(found.costs[0]) > limit:
            over = found
        else:
            under = found
    return np.array([price]), points


def _many_prices(elimination: Elimination, first: Best) -> tuple[np.ndarray, list[Best]]:
    """Kelley's cutting planes: every maximiser is a plane below the dual."""
    tables = elimination.tables
    points = [first, *(cheapest(elimination, c) for c in range(len(tables.limits)))]
    spread = max(1.0, *(abs(first.value - point.value) for point in points))
    scale = np.maximum(np.abs(tables.limits), 1e-300)
    ceiling, prices, lowest = 1e4 * spread, np.zeros(len(scale)), np.inf
    for _ in range(STEPS):
        slopes = np.array([(tables.limits - point.costs) / scale for point in points])
        rows = np.concatenate([slopes, -np.ones((len(points), 1))], axis=1)
        values = np.array([point.value for point in points])
        box = [(0.0, ceiling)] * len(scale) + [(None, None)]
        plan = linprog(np.append(np.zeros(len(scale)), 1.0), A_ub=rows, b_ub=-values, bounds=box, method="highs")
        if plan.x is None:
            break
        found = elimination.solve(plan.x[:-1] / scale)[0]
        if found.bound < lowest:
            lowest, prices = found.bound, plan.x[:-1] / scale
        if lowest <= float(plan.x[-1]) + 1e-7 * max(1.0, abs(lowest)):
            break
        points.append(found)
    return prices, points


def surviving(problem: Problem, dual: Dual, floor: float, depth: float) -> tuple[tuple[np.ndarray, ...], float, float]:
    """Options worth a look: bound above ``floor`` and within ``depth`` of the best.

    Returns:
        (boolean mask per group, best bound among the options left out although above ``floor`` (-inf if none),
        best bound among those at or below ``floor``).
    """
    masks, left_out, hopeless = [], -np.inf, -np.inf
    for group, bounds in enumerate(dual.marginals):
        alive = bounds > floor
        near = alive & (bounds >= dual.bound - depth)
        if alive.any() and (alive & ~near).any():
            left_out = max(left_out, float(bounds[alive & ~near].max()))
        if not alive.all():
            hopeless = max(hopeless, float(bounds[~alive].max()))
        if not near.any():
            near[int(np.argmax(bounds))] = True
        if problem.inner_blocks[group]:
            near[0] = True
        masks.append(near)
    return tuple(masks), left_out, hopeless
