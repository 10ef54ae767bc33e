"""Integer identities of removable indices, merged with a vectorised union-find."""

from __future__ import annotations

from collections.abc import Iterable
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
        self._pin_of: dict[int, Pin] = {}
        self._pins: list[tuple[np.ndarray, Pin]] = []

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> np.ndarray:
        """``count`` new ids, int64 [count]."""
        start = len(self._parent)
        ids = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, ids])
        return ids

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The representative of every id, same shape."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def unify(self, first: np.ndarray, second: np.ndarray) -> None:
        """Make each pair of ids one unit; arrays of the same shape. Neutral ids unify with nothing."""
        a, b = np.ravel(first), np.ravel(second)
        real = (a != NEUTRAL) & (b != NEUTRAL)
        a, b = self.find(a[real]), self.find(b[real])
        while True:
            low, high = np.minimum(a, b), np.maximum(a, b)
            differ = low != high
            if not differ.any():
                return
            low, high = low[differ], high[differ]
            np.minimum.at(self._parent, high, low)
            a, b = self.find(low), self.find(high)

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

    def pins(self) -> Iterable[tuple[np.ndarray, Pin]]:
        """Every pinning in order: the ids that were pinned first-hand and why."""
        return iter(self._pins)
