"""Integer identities of removable indices, merged with a vectorised union-find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEUTRAL = 0
"""Stands for "nothing is here" (padding): unifying it with a unit gives the unit."""
PINNED = 1
"""The class of everything that must stay."""


@dataclass(frozen=True)
class Pin:
    """Why some ids must stay: the reason in words and the exported node where it was decided."""

    reason: str
    node: str


class IdSpace:
    """All ids of one analysis. An id is an index into the union-find forest; classes are *units*."""

    def __init__(self) -> None:
        self._parent = np.array([NEUTRAL, PINNED], dtype=np.int64)
        # The same forest without pins: it tells which pin made a class stay.
        self._unpinned = self._parent.copy()
        self._pins: list[tuple[np.ndarray, Pin]] = []

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> np.ndarray:
        """``count`` new ids, int64 [count]."""
        ids = np.arange(len(self._parent), len(self._parent) + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, ids])
        self._unpinned = np.concatenate([self._unpinned, ids])
        return ids

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The representative of every id, same shape."""
        return _roots(self._parent, ids)

    def unify(self, first: np.ndarray, second: np.ndarray) -> None:
        """Make each pair of ids one unit; arrays of the same shape. Neutral ids unify with nothing."""
        a, b = np.ravel(first), np.ravel(second)
        real = (a != NEUTRAL) & (b != NEUTRAL)
        _merge(self._parent, a[real], b[real])
        apart = real & (a != PINNED) & (b != PINNED)
        _merge(self._unpinned, a[apart], b[apart])

    def tie(self, ids: np.ndarray) -> None:
        """Make all ids of each row one unit; ids [rows, n]."""
        ids = np.atleast_2d(ids)
        for column in range(1, ids.shape[1]):
            anchor = ids[:, :column].max(axis=1)  # a row may start with neutral ids
            self.unify(anchor, ids[:, column])

    def pin(self, ids: np.ndarray, reason: str, node: str) -> None:
        """Declare that these ids stay, and remember why."""
        ids = np.unique(ids)
        ids = ids[(ids != NEUTRAL) & (self.find(ids) != PINNED)]
        if len(ids):
            self._pins.append((ids, Pin(reason, node)))
            self.unify(ids, np.full_like(ids, PINNED))

    def pinned(self, ids: np.ndarray) -> np.ndarray:
        """True where an id must stay, bool, same shape."""
        return self.find(ids) == PINNED

    def classes(self, ids: np.ndarray) -> np.ndarray:
        """Equal numbers for ids that were made one unit, whether they are pinned or not."""
        return _roots(self._unpinned, np.ravel(ids))

    def reasons(self, ids: np.ndarray) -> list[tuple[Pin, int]]:
        """Why ids of an axis stay: each pin that holds some of them, with how many, most first."""
        stays = ids[(ids != NEUTRAL) & self.pinned(ids)]
        if not len(stays):
            return []
        mine = _roots(self._unpinned, stays)
        open_ = np.ones(len(stays), dtype=bool)
        found: dict[Pin, int] = {}
        for pinned, pin in self._pins:
            hit = open_ & np.isin(mine, _roots(self._unpinned, pinned))
            if hit.any():
                found[pin] = found.get(pin, 0) + int(hit.sum())
                open_ &= ~hit
        return sorted(found.items(), key=lambda item: -item[1])


def _roots(parent: np.ndarray, ids: np.ndarray) -> np.ndarray:
    roots = parent[ids]
    while True:
        above = parent[roots]
        if np.array_equal(above, roots):
            break
        roots = above
    parent[ids] = roots
    return roots


def _merge(parent: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    a, b = _roots(parent, a), _roots(parent, b)
    while True:
        low, high = np.minimum(a, b), np.maximum(a, b)
        differ = low != high
        if not differ.any():
            return
        low, high = low[differ], high[differ]
        np.minimum.at(parent, high, low)
        a, b = _roots(parent, low), _roots(parent, high)
