"""Scores from similarities, such that duplicates do not vanish together."""

from __future__ import annotations

import numpy as np

NEAR = 0.95
"""Similarity from which two filters count as duplicates of each other."""


def removal_scores(similarity: np.ndarray, norms: np.ndarray, partners: int) -> np.ndarray:
    """Importances float64 [n] from similarities [n, n] and norms [n]: 1 - redundancy at the moment of removal.

    Filters go one by one. The next one is the most redundant (mean of its ``partners`` largest similarities to those
    that are still there); where its nearest partner is a near duplicate of smaller norm, that one goes instead; of
    equals the one of smaller norm. Afterwards redundancies are new, so of two duplicates one stays. Scores never
    fall along the way, so the order of removal is the order of the scores. Cost: O(n²) and a little more.
    """
    count = len(similarity)
    table = np.array(similarity, dtype=np.float64)
    np.fill_diagonal(table, -np.inf)
    alive = np.ones(count, dtype=bool)
    ranks = np.array([_ranked(row, partners) for row in table])
    order, levels, level = np.empty(count, dtype=np.int64), np.empty(count), 0.0
    for step in range(count):
        candidates = np.flatnonzero(alive)
        redundancy = ranks[candidates, 0]
        equal = candidates[redundancy >= redundancy.max() - 1e-12]
        gone = int(equal[np.argmin(norms[equal])])
        nearest = int(np.argmax(table[gone]))
        if table[gone, nearest] >= NEAR and norms[nearest] < norms[gone]:
            gone = nearest
        level = max(level, 1.0 - ranks[gone, 0])
        order[step], levels[step] = gone, level
        alive[gone] = False
        _forget(table, ranks, alive, gone, partners)
    scores = np.empty(count)
    # A tiny slope keeps the order where scores are equal.
    scores[order] = levels + 1e-9 * np.arange(count)
    return scores


def _forget(table: np.ndarray, ranks: np.ndarray, alive: np.ndarray, gone: int, partners: int) -> None:
    """Take a filter out of the table; redundancies change only where it was among the most similar partners."""
    affected = np.flatnonzero(alive & (table[:, gone] >= ranks[:, 1]))
    table[:, gone] = table[gone] = -np.inf
    for row in affected:
        ranks[row] = _ranked(table[row], partners)


def _ranked(row: np.ndarray, partners: int) -> tuple[float, float]:
    """Mean of the largest finite entries (-1 where no partner is left), and the smallest of these."""
    best = np.partition(row, -partners)[-partners:] if len(row) > partners else row
    best = best[np.isfinite(best)]
    return (float(best.mean()), float(best.min())) if len(best) else (-1.0, -np.inf)
