"""The exact optimum by variable elimination over (cost, value) pairs instead of priced totals.

Where prices leave a gap, the eliminated parts of the network are kept as lists of labels, (cost, value) pairs of which
none is both dearer and worse than another, per state of what they touch. A label is dropped when even the best
completion (the priced bounds of :mod:`secateurs.search.elimination`, at several prices) stays at or below the value
to beat, or when its cheapest completion breaks the limit. What is left is a handful per state, and the best label at
the end is the optimum. One constraint only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from secateurs.search.elimination import FORBIDDEN, Bucket, Elimination, Passes, onto
from secateurs.search.problem import SLACK

PRODUCT_AT_MOST = 2_000_000
LABELS_AT_MOST = 1_000_000


@dataclass(frozen=True)
class Labelled:
    """``states``: per group, None where nothing beats the floor; ``complete``: False where lists were cut short."""

    states: np.ndarray | None
    removed: frozenset[int]
    value: float
    complete: bool


@dataclass
class _Labels:
    """Costs and values, and where each came from: the state of the bucket's variable and one label per child."""

    cost: np.ndarray
    value: np.ndarray
    state: np.ndarray
    picks: np.ndarray


@dataclass(frozen=True)
class _Test:
    """A label with ``weight`` * value - ``price`` * cost + completion ≤ ``floor`` is hopeless."""

    weight: float
    price: float
    floor: float
    passes: Passes


class TooManyLabels(Exception):
    """The lists grew past what is worth it, or time is up; another method has to finish."""


def best_labels(
    elimination: Elimination,
    prices: list[float],
    floor: float,
    *,
    beam: int | None = None,
    until: float = math.inf,
) -> Labelled:
    """The network of largest value above ``floor`` within the limit.

    Args:
        elimination: of a problem with one constraint, without copies and with exact tables.
        prices: at which completions are bounded; the dual's best one first.
        floor: the value to beat.
        beam: keep this many labels per list only, the most promising ones: quick, but not complete.
        until: time of :func:`time.perf_counter` at which to stop.

    Raises:
        TooManyLabels: more than :data:`LABELS_AT_MOST` labels, or time is up.
    """
    return _Run(elimination, prices, floor, beam, until).solve()


class _Run:
    def __init__(
        self, elimination: Elimination, prices: list[float], floor: float, beam: int | None, until: float
    ) -> None:
        self.e, self.beam, self.until, self.cut, self.count = elimination, beam, until, False, 0
        limit = float(elimination.tables.limits[0])
        self.ceiling = limit + SLACK * abs(limit)
        self.tests = [_Test(1.0, p, floor, elimination.passes(np.array([p]))) for p in prices]
        cheapest = elimination.passes(np.array([1.0]), worthless=True)
        self.tests.append(_Test(0.0, 1.0, limit - self.ceiling - 1e-12 * abs(limit), cheapest))
        self.lists: list[dict[tuple[int, ...], _Labels]] = []

    def solve(self) -> Labelled:
        for index, bucket in enumerate(self.e.buckets):
            self.lists.append(self._bucket(index, bucket))
        roots = [i for i, bucket in enumerate(self.e.buckets) if not bucket.rest]
        tables = self.e.tables
        start = _Labels(
            np.array([float(tables.offset[0])]),
            np.array([tables.value_offset]),
            np.zeros(1, dtype=np.int64),
            np.zeros((1, 0), dtype=np.int64),
        )
        # the passes' bound counts limit and offset once; the labels carry the offset, so only the limit is added
        rest = [[float(t.passes.messages[r]) for r in roots] for t in self.tests]
        constants = [t.price * float(tables.limits[0]) for t in self.tests]
        final = start
        for number, root in enumerate(roots):
            left = [constants[k] + sum(rest[k][number + 1 :]) for k in range(len(self.tests))]
            labels = self.lists[root].get(())
            if labels is None:
                return Labelled(None, frozenset(), -np.inf, not self.cut)
            final = self._thin(self._merge(final, labels), left)
        within = np.flatnonzero(final.cost <= self.ceiling)
        if not len(within):
            return Labelled(None, frozenset(), -np.inf, not self.cut)
        best = int(within[np.argmax(final.value[within])])
        states = np.zeros(len(self.e.sizes), dtype=np.int64)
        for number, root in enumerate(roots):
            self._trace(root, (), int(final.picks[best, number]), states)
        removed = frozenset(b for b, v in self.e.block_variable.items() if states[v] == 1)
        return Labelled(states[: len(tables.values)], removed, float(final.value[best]), not self.cut)

    def _own(self, bucket: Bucket) -> tuple[np.ndarray, np.ndarray]:
        """Value and cost of the bucket's own pieces, over its scope."""
        shape = [self.e.sizes[v] for v in bucket.scope]
        value, cost = np.zeros(shape), np.zeros(shape)
        for index in bucket.pieces:
            piece = self.e.pieces[index]
            if piece.worth is not None:
                value += onto(piece.worth, piece.scope, bucket.scope)
            if piece.costs is not None:
                cost += onto(piece.costs[0], piece.scope, bucket.scope)
        return value, cost

    def _bucket(self, index: int, bucket: Bucket) -> dict[tuple[int, ...], _Labels]:
        value, cost = self._own(bucket)
        alive = value > FORBIDDEN / 2
        for test in self.tests:
            alive &= test.passes.beliefs[index] > test.floor
        axis = bucket.scope.index(bucket.variable)
        found: dict[tuple[int, ...], list[_Labels]] = {}
        for at in map(tuple, np.argwhere(alive).tolist()):
            state, here = at[axis], dict(zip(bucket.scope, at, strict=True))
            labels = _Labels(
                np.array([cost[at]]), np.array([value[at]]), np.array([state]), np.zeros((1, 0), dtype=np.int64)
            )
            key = tuple(here[v] for v in bucket.rest)
            if time.perf_counter() > self.until:
                raise TooManyLabels
            for part, left in self._children(bucket, here, [float(t.passes.downward[index][key]) for t in self.tests]):
                if part is None:
                    break
                labels = self._thin(self._merge(labels, part), left)
                if not len(labels.cost):
                    break
            else:
                found.setdefault(key, []).append(labels)
        result = {}
        for key, lists in found.items():
            joined = lists[0] if len(lists) == 1 else self._join(lists)
            completion = [float(t.passes.downward[index][key]) for t in self.tests]
            thin = self._thin(joined, completion)
            if len(thin.cost):
                result[key] = thin
                self.count += len(thin.cost)
        if self.count > LABELS_AT_MOST:
            raise TooManyLabels
        return result

    def _children(
        self, bucket: Bucket, here: dict[int, int], outside: list[float]
    ) -> Iterator[tuple[_Labels | None, list[float]]]:
        """Per child its labels at these states, and the completion of what is merged once it is in, per test."""
        keys = [tuple(here[v] for v in self.e.buckets[child].rest) for child in bucket.children]
        left = [
            rest + sum(float(t.passes.messages[c][k]) for c, k in zip(bucket.children, keys, strict=True))
            for t, rest in zip(self.tests, outside, strict=True)
        ]
        for child, key in zip(bucket.children, keys, strict=True):
            left = [rest - float(t.passes.messages[child][key]) for t, rest in zip(self.tests, left, strict=True)]
            yield self.lists[child].get(key), left

    def _merge(self, one: _Labels, other: _Labels) -> _Labels:
        rows, columns = len(one.cost), len(other.cost)
        if rows * columns > PRODUCT_AT_MOST:
            raise TooManyLabels
        picks = np.column_stack([np.repeat(one.picks, columns, axis=0), np.tile(np.arange(columns), rows)])
        return _Labels(
            (one.cost[:, None] + other.cost[None, :]).reshape(-1),
            (one.value[:, None] + other.value[None, :]).reshape(-1),
            np.repeat(one.state, columns),
            picks,
        )

    @staticmethod
    def _join(lists: list[_Labels]) -> _Labels:
        return _Labels(
            np.concatenate([part.cost for part in lists]),
            np.concatenate([part.value for part in lists]),
            np.concatenate([part.state for part in lists]),
            np.concatenate([part.picks for part in lists]),
        )

    def _thin(self, labels: _Labels, completion: list[float]) -> _Labels:
        """Without the labels that cannot win or that another one beats."""
        keep = np.ones(len(labels.cost), dtype=bool)
        for test, rest in zip(self.tests, completion, strict=True):
            keep &= test.weight * labels.value - test.price * labels.cost + rest > test.floor
        chosen = np.flatnonzero(keep)
        if len(chosen) > 1:
            order = chosen[np.lexsort((-labels.value[chosen], labels.cost[chosen]))]
            value = labels.value[order]
            highest = np.concatenate([[-np.inf], np.maximum.accumulate(value)[:-1]])
            chosen = order[value > highest]
        if self.beam is not None and len(chosen) > self.beam:
            self.cut = True
            bound = np.min(
                [
                    t.weight * labels.value[chosen] - t.price * labels.cost[chosen] + c
                    for t, c in zip(self.tests[:-1], completion, strict=False)
                ],
                axis=0,
            )
            chosen = np.sort(chosen[np.argsort(-bound, kind="stable")[: self.beam]])
        return _Labels(labels.cost[chosen], labels.value[chosen], labels.state[chosen], labels.picks[chosen])

    def _trace(self, index: int, key: tuple[int, ...], label: int, states: np.ndarray) -> None:
        """Write the states that a label stands for."""
        bucket, labels = self.e.buckets[index], self.lists[index][key]
        states[bucket.variable] = labels.state[label]
        here = {**dict(zip(bucket.rest, key, strict=True)), bucket.variable: int(labels.state[label])}
        for number, child in enumerate(bucket.children):
            rest = self.e.buckets[child].rest
            self._trace(child, tuple(here[v] for v in rest), int(labels.picks[label, number]), states)
