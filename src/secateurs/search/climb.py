"""Hill climbing inside the limits: use what slack a plan leaves."""

from __future__ import annotations

import numpy as np

from secateurs.search.problem import SLACK, Candidate, Problem

MOVES_AT_MOST = 2000


def climb(problem: Problem, start: Candidate) -> Candidate:
    """``start`` improved by the best single change of a group's width or a block until none fits; never worse.

    Each move takes the change that gains most value per relative cost (any gain at no cost first).
    """
    widths, removed = start.widths.copy(), set(start.removed)
    ceiling = problem.limits + SLACK * np.abs(problem.limits)
    scale = np.maximum(np.abs(problem.limits), 1e-300)
    for _ in range(MOVES_AT_MOST):
        moves, gone = neighbours(problem, widths, removed)
        value = float(problem.value(widths, removed))
        gain = problem.value(moves, gone) - value
        better = gain > 1e-12 * max(1.0, abs(value))
        moves, gone, gain = moves[better], gone[better], gain[better]
        costs = problem.costs(moves, gone)
        legal = np.all(costs <= ceiling, axis=-1)
        if not legal.any():
            break
        extra = np.max((costs - problem.costs(widths, removed)) / scale, axis=-1)
        rate = np.where(legal, gain / np.maximum(extra, 1e-9), -np.inf)
        chosen = int(np.argmax(rate))
        widths, removed = moves[chosen].copy(), {int(b) for b in np.flatnonzero(gone[chosen])}
    return problem.candidate(widths, removed)


def neighbours(problem: Problem, widths: np.ndarray, removed: set[int]) -> tuple[np.ndarray, np.ndarray]:
    """Every network that differs in one group's width or one block: widths [n, groups], removed bool [n, blocks]."""
    base = np.zeros(len(problem.spec.blocks), dtype=bool)
    base[list(removed)] = True
    rows, gones = [], []
    for group, options in enumerate(problem.options):
        if not removed.isdisjoint(problem.inner_blocks[group]):
            continue
        for width in options[options != widths[group]]:
            rows.append(np.where(np.arange(len(widths)) == group, width, widths))
            gones.append(base)
    for block in sorted(problem.removable):
        flipped = base.copy()
        flipped[block] = not flipped[block]
        rows.append(widths)
        gones.append(flipped)
    if not rows:
        return np.zeros((0, len(widths)), dtype=np.int64), np.zeros((0, len(base)), dtype=bool)
    return np.stack(rows), np.stack(gones)
