"""From scores to value curves and to the units that stay."""

from __future__ import annotations

import numpy as np


def order(scores: np.ndarray) -> np.ndarray:
    """Units from most to least important, int64 [units]; of equals the first one first."""
    return np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")


def curve(scores: np.ndarray) -> np.ndarray:
    """V(w) = sum of the w largest scores for w = 0 … units, float64 [units + 1]."""
    scores = np.asarray(scores, dtype=np.float64)
    return np.concatenate([[0.0], np.cumsum(scores[order(scores)])])


def keep(scores: np.ndarray, width: int) -> tuple[int, ...]:
    """The ``width`` most important units in ascending order."""
    return tuple(sorted(order(scores)[:width].tolist()))
