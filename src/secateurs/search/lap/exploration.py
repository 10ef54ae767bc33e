"""Random actions: truncated normals, and the ratios around which the sensitivity prior centres them."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

from secateurs.search.lap.choices import Choices, Network
from secateurs.search.lap.sensitivity import Sensitivity
from secateurs.search.problem import Problem
from secateurs.search.uniform import ratio_ladder

_OFFERED, _STEPS = 6, 100
"""Steps that compete for the next place, and most steps in one direction."""
_SHIFTS = np.linspace(-1.0, 1.0, 101)
FREE_RATIO = 0.4
"""ρ̄ where there is no budget to derive it from."""


def truncated_normal(rng: np.random.Generator, mean: float, sigma: float, low: float = 0.0, high: float = 1.0) -> float:
    """One draw of a normal restricted to [low, high], by inversion; the clipped mean where ``sigma`` is 0."""
    if sigma <= 0:
        return float(np.clip(mean, low, high))
    start, end = ndtr((low - mean) / sigma), ndtr((high - mean) / sigma)
    if end - start < 1e-12:
        return float(np.clip(mean, low, high))
    return float(np.clip(mean + sigma * ndtri(rng.uniform(start, end)), low, high))


def uniform_ratio(problem: Problem, most: float) -> float:
    """ρ̄: mean pruned share of the widest uniform network within the limits; ``most`` where none fits."""
    ladder = ratio_ladder(problem)
    fits = np.flatnonzero(problem.fits(ladder))
    if not len(fits):
        return most
    return float(np.clip(1.0 - (ladder[fits[-1]] / problem.spec.dense_widths).mean(), 0.0, most))


def prior_ratios(curves: Sensitivity, mean_ratio: float, most: float) -> np.ndarray:
    """clip(ρ̄ ŝ_g / mean ŝ, 0, most), float64 [groups]; ρ̄ everywhere where the mean sensitivity is not positive."""
    mean = float(curves.relative.mean()) if len(curves.relative) else 0.0
    if mean <= 0:
        return np.full(len(curves.relative), min(mean_ratio, most))
    return np.clip(mean_ratio * curves.relative / mean, 0.0, most)


def block_sensitivity(choices: Choices) -> np.ndarray:
    """Latency that goes with the block which each group heads, over the mean of such blocks; else 0: float64 [groups].

    Ours: the latency sensitivity of a whole block. A block is worth removing by no width of its groups, so ratios alone
    would hardly ever take one.
    """
    problem, found = choices.problem, np.zeros(len(choices.problem.spec.groups))
    if not choices.heads:
        return found
    heads, blocks = list(choices.heads), list(choices.heads.values())
    dense = np.tile(problem.spec.dense_widths, (len(blocks), 1))
    gone = np.stack([problem.gone({block}, ()) for block in blocks])
    saved = np.maximum((problem.costs(dense, np.zeros_like(gone)) - problem.costs(dense, gone))[:, 0], 0.0)
    found[heads] = saved / max(float(saved.mean()), 1e-12)
    return found


def balanced(choices: Choices, ratios: np.ndarray) -> np.ndarray:
    """The ratios moved by one common amount so that the network just fits the limits, float64 [groups].

    Without it the wall would let early groups keep what they like and take the rest from the last ones. Blocks that
    the ratios take away stay away, no other is taken; where no shift fits, the ratios of most pruning come back and
    the wall does the rest. Ours; used where the prior guides exploration.
    """
    most = np.array([found[found < 1.0].max(initial=0.0) for found in choices.ratios])
    gone = np.array([choices.width(g, choices.nearest(g, float(r))) == 0 for g, r in enumerate(ratios)])
    tried = [np.where(gone, 1.0, np.clip(ratios + shift, 0.0, most)) for shift in _SHIFTS]
    networks = [choices.network(one) for one in tried]
    removed = np.zeros((len(tried), len(choices.problem.spec.blocks)), dtype=bool)
    removed[:, sorted(networks[0].removed)] = True
    fits = np.flatnonzero(choices.problem.fits(np.stack([network.widths for network in networks]), removed))
    return tried[int(fits[0])] if len(fits) else tried[-1]


def refitted(choices: Choices, ratios: np.ndarray, base: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ratios near the limits after some of ``base`` were changed to ``ratios``, float64 [groups].

    Groups that were not changed are narrowed step by step until the network fits, then widened while it does; of
    :data:`_OFFERED` random steps the one that loses least (gains most) value per cost is taken. Blocks stay as the
    ratios say. Ours; used where a search starts from a plan.
    """
    problem, found = choices.problem, np.array(ratios, dtype=np.float64)
    changed = ~np.isclose(ratios, base)
    for narrower in (True, False):
        for _ in range(_STEPS):
            now = choices.network(found)
            if narrower and bool(problem.fits(now.widths, now.removed)):
                break
            steps = _steps(choices, found, changed, now, narrower)
            steps = [steps[i] for i in rng.permutation(len(steps))[:_OFFERED]]
            best = _best_step(choices, found, now, steps, narrower)
            if best is None:
                break
            found = best
    return found


def _steps(
    choices: Choices, ratios: np.ndarray, changed: np.ndarray, now: Network, narrower: bool
) -> list[tuple[int, float]]:
    """(group, next ratio) of every group that may take a step and stays."""
    found = []
    for group, legal in enumerate(choices.ratios):
        option = choices.nearest(group, float(ratios[group])) + (1 if narrower else -1)
        inside = choices.problem.inner_blocks[group].isdisjoint(now.removed)
        if inside and not changed[group] and 0 <= option < len(legal) and choices.width(group, option) > 0:
            found.append((group, float(legal[option])))
    return found


def _best_step(
    choices: Choices, ratios: np.ndarray, now: Network, steps: list[tuple[int, float]], narrower: bool
) -> np.ndarray | None:
    """The ratios after the step of best value per cost; widening steps must fit. None where there is no step."""
    if not steps:
        return None
    problem = choices.problem
    trials = np.tile(ratios, (len(steps), 1))
    for row, (group, ratio) in enumerate(steps):
        trials[row, group] = ratio
    widths = np.stack([choices.network(trial).widths for trial in trials])
    removed = problem.gone(now.removed, (len(steps),))
    cost = np.abs(problem.costs(widths, removed)[:, 0] - problem.costs(now.widths, now.removed)[0])
    value = np.abs(problem.value(widths, removed) - problem.value(now.widths, now.removed))
    density = value / np.maximum(cost, 1e-12)
    if narrower:
        return np.asarray(trials[int(np.argmin(density))])
    density = np.where(problem.fits(widths, removed), density, -np.inf)
    best = int(np.argmax(density))
    return np.asarray(trials[best]) if np.isfinite(density[best]) else None
