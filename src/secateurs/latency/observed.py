"""What whole-network runs showed, as arrays, with the drift of the machine taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from secateurs.latency.collect import Observation


@dataclass(frozen=True)
class Table:
    """Observations as arrays: widths [n, groups], totals [n] (drift removed), times and operators [n, sites].

    ``block`` [n] tells which networks were measured together.
    """

    widths: np.ndarray
    removed: tuple[frozenset[int], ...]
    total_ms: np.ndarray
    site_ms: np.ndarray
    site_ops: np.ndarray
    block: np.ndarray
    dense_ms: float
    noise: float

    @classmethod
    def of(cls, observations: Sequence[Observation], share: float = 1.0) -> Table:
        """Times without the machine's drift, as far as (``share``, 0 to 1) the dense network's latency tells it."""
        anchors = np.array([entry.anchor_ms for entry in observations])
        dense_ms = float(np.median(anchors))
        drift = (dense_ms / anchors) ** share
        return cls(
            widths=np.array([entry.widths for entry in observations], dtype=np.int64),
            removed=tuple(frozenset(entry.removed) for entry in observations),
            total_ms=np.array([entry.total_ms for entry in observations]) * drift,
            site_ms=np.array([entry.site_ms for entry in observations], dtype=np.float64) * drift[:, None],
            site_ops=np.array([entry.site_ops for entry in observations], dtype=np.float64),
            block=np.unique(anchors, return_inverse=True)[1].ravel(),
            dense_ms=dense_ms,
            noise=float(np.median(np.abs(dense_ms / anchors - 1))),
        )

    def subset(self, rows: np.ndarray) -> Table:
        """Only these rows."""
        return Table(
            widths=self.widths[rows],
            removed=tuple(self.removed[row] for row in rows),
            total_ms=self.total_ms[rows],
            site_ms=self.site_ms[rows],
            site_ops=self.site_ops[rows],
            block=self.block[rows],
            dense_ms=self.dense_ms,
            noise=self.noise,
        )

    def scaled(self, factors: np.ndarray) -> Table:
        """Every time multiplied by its block's factor [blocks]."""
        own = factors[self.block]
        return replace(self, total_ms=self.total_ms * own, site_ms=self.site_ms * own[:, None])
