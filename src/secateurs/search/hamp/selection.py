"""A portfolio of environmental selections that share the slots of a population by the credit they earn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pymoo.decomposition.tchebicheff import Tchebicheff
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from pymoo.util.ref_dirs import get_reference_directions

from secateurs.search.hamp.archive import Box

Ranking = Callable[[np.ndarray, int], np.ndarray]
"""(scaled objectives [n, objectives], slots) to indices, best first; at least ``slots`` of them."""

LEARNING, FLOOR = 0.2, 0.1
"""How fast quotas follow the credit, and the least quota of a selection."""


def by_crowding(objectives: np.ndarray, slots: int) -> np.ndarray:
    """NSGA-II: fronts in order, within a front the loneliest first."""
    order: list[int] = []
    for front in NonDominatedSorting().do(objectives, n_stop_if_ranked=slots):
        lonely = calc_crowding_distance(objectives[front]) if len(front) > 2 else np.full(len(front), np.inf)
        order.extend(front[np.argsort(-lonely, kind="stable")].tolist())
    return np.array(order, dtype=np.int64)


def by_hypervolume(objectives: np.ndarray, slots: int) -> np.ndarray:
    """SMS-EMOA style: fronts in order, within a front by the hypervolume that only this point covers."""
    order: list[int] = []
    for front in NonDominatedSorting().do(objectives, n_stop_if_ranked=slots):
        points = objectives[front]
        box = Box(points.min(axis=0), points.max(axis=0))
        whole = box.hypervolume(points)
        alone = [whole - box.hypervolume(np.delete(points, index, axis=0)) for index in range(len(points))]
        order.extend(front[np.argsort(-np.array(alone), kind="stable")].tolist())
    return np.array(order, dtype=np.int64)


def by_decomposition(objectives: np.ndarray, slots: int) -> np.ndarray:
    """MOEA/D style: evenly spread directions; a point is as good as its best place in any direction's order."""
    directions = reference_directions(objectives.shape[1], slots)
    distances = Tchebicheff().do(objectives, 1.0 / np.maximum(directions, 1e-3), _type="many_to_many")
    places = np.argsort(np.argsort(distances, axis=0, kind="stable"), axis=0, kind="stable")
    best = places.min(axis=1)
    nearest = (distances / distances.max(axis=0, initial=1e-12)).min(axis=1)
    return np.lexsort((nearest, best)).astype(np.int64)


def reference_directions(objectives: int, about: int) -> np.ndarray:
    """Evenly spread unit-sum directions [at most ``about``, objectives] (das-dennis), at least one per objective."""
    partitions = 1
    while partitions < 99 and _directions(objectives, partitions + 1) <= about:
        partitions += 1
    return np.asarray(get_reference_directions("das-dennis", objectives, n_partitions=partitions))


def _directions(objectives: int, partitions: int) -> int:
    count = 1
    for index in range(1, objectives):
        count = count * (partitions + index) // index
    return count


PORTFOLIO: dict[str, Ranking] = {
    "crowding": by_crowding,
    "hypervolume": by_hypervolume,
    "decomposition": by_decomposition,
}


@dataclass(frozen=True)
class Selected:
    """Survivors as indices into the pool, and for each the selections (by place in the portfolio) that named it within
    their quotas."""

    indices: np.ndarray
    nominators: tuple[frozenset[int], ...]


def select(
    objectives: np.ndarray,
    violations: np.ndarray,
    slots: int,
    scale: Box,
    quotas: np.ndarray,
    rankings: Sequence[Ranking],
) -> Selected:
    """The survivors of a pool.

    Feasible points first. Among them every selection names points from its own ranking, in turns by its quota; a point
    that several name takes one slot, and what is free for that reason is filled in further turns, which earn nobody
    credit: there the selections agree. Infeasible points fill what is left, least violation first.

    Args:
        objectives: float64 [n, objectives].
        violations: float64 [n]; 0 where every limit is met.
        slots: survivors wanted (all of the pool if it is smaller).
        scale: what the objectives are scaled by.
        quotas: share of the slots per selection, sums to 1.
        rankings: the selections.
    """
    feasible = np.flatnonzero(violations <= 0)
    named: dict[int, set[int]] = {}
    if len(feasible):
        wanted = min(slots, len(feasible))
        scaled = scale.scale(objectives[feasible])
        lists = [feasible[ranking(scaled, wanted)].tolist() for ranking in rankings]
        given, place, own = np.zeros(len(rankings)), [0] * len(rankings), np.ceil(quotas * wanted)
        while len(named) < wanted:
            open_lists = [k for k in range(len(rankings)) if place[k] < len(lists[k])]
            turn = max(open_lists, key=lambda k: quotas[k] * (given.sum() + 1) - given[k])
            point = int(lists[turn][place[turn]])
            named.setdefault(point, set())
            if place[turn] < own[turn]:
                named[point].add(turn)
            place[turn] += 1
            given[turn] += 1
    rest = sorted((i for i in range(len(objectives)) if violations[i] > 0), key=lambda i: float(violations[i]))
    for index in rest[: max(0, slots - len(named))]:
        named[index] = set()
    return Selected(np.array(list(named), dtype=np.int64), tuple(frozenset(who) for who in named.values()))


def updated_quotas(quotas: np.ndarray, credit: np.ndarray) -> np.ndarray:
    """Quotas moved towards the share of ``credit`` that each selection earned, none below :data:`FLOOR`."""
    if credit.sum() <= 0:
        return quotas
    earned = FLOOR + (1 - FLOOR * len(quotas)) * credit / credit.sum()
    return (1 - LEARNING) * quotas + LEARNING * earned
