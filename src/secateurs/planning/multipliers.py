"""Values of different groups made comparable: one factor per group, fitted on the loss of the networks they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from secateurs.planning.planner import Planner
from secateurs.progress import Progress, silent
from secateurs.search.problem import Evaluation

SPREAD = 1.5
"""Standard deviation of the base-two logarithm of a fresh factor."""
STARTS, CHANGED = 0.25, 0.1
"""Share of the trials that draw every factor anew, and of the factors that a later trial draws anew."""


class LossJudge(Protocol):
    """Judges a candidate on images; ``details["loss"]`` of what it returns counts."""

    def __call__(self, widths: np.ndarray, removed: frozenset[int]) -> Evaluation: ...


@dataclass(frozen=True)
class Fitted:
    """The planner with the best factors, the factors by group, and the loss without and with them."""

    planner: Planner
    multipliers: Mapping[str, float]
    before: float
    after: float

    @property
    def note(self) -> str:
        """A line for the user."""
        return f"Values of groups were calibrated: loss of the cut network {self.before:.3f} before, {self.after:.3f}."


def fit_multipliers(
    planner: Planner,
    limits: Mapping[str, float],
    judge: LossJudge,
    *,
    trials: int,
    seed: int = 0,
    progress: Progress = silent,
) -> Fitted:
    """A planner whose scores carry a factor per group, such that its network within ``limits`` has the least loss.

    Card. Formula: V_g(w) ← c_g V_g(w); c by random search: first all ones, then draws of log2 c ~ N(0, 1.5²), then
    draws of a tenth of the factors of the best so far; a draw is judged by the loss, on calibration images, of the
    network that the exact search makes of it. Source: SPDY, arXiv 2201.13096 (docs/methods.md, "Value multipliers"),
    with its dynamic program replaced by the exact search. Ours: the spread, and factors of scores instead of layer
    errors. Cost: ``trials`` searches and evaluations, minutes. When to use: before an expensive training, and with
    criteria whose values do not compare across groups. When not: it fits one budget; another one needs a fit of its
    own.

    Args:
        planner: what makes networks of scores.
        limits: by resource, as ratios to dense.
        judge: see :class:`LossJudge`.
        trials: networks to look at, the first one as it would be without factors.
        seed: of the draws.
        progress: shows trials and the loss so far.

    Raises:
        InfeasibleBudgetError: no legal network is within the limits.
    """
    rng = np.random.default_rng(seed)
    scores, names = planner.scores, [group.name for group in planner.graph.groups]

    def scaled(logs: np.ndarray, told: Progress = silent) -> Planner:
        known = {name: scores[name] * 2.0**log for name, log in zip(names, logs, strict=True)}
        return planner.knowing(known, told)

    def loss(logs: np.ndarray) -> float:
        solution = scaled(logs).solve(limits).solution
        return float(judge(solution.widths, solution.removed).details["loss"])

    best = np.zeros(len(names))
    with progress.task("calibrate values", trials) as task:
        before = least = loss(best)
        task.advance(1, f"loss {least:.4f}")
        for trial in range(1, trials):
            drawn = rng.normal(0.0, SPREAD, len(names))
            if trial > STARTS * trials:
                anew = rng.random(len(names)) < CHANGED
                anew[rng.integers(len(names))] = True
                drawn = np.where(anew, drawn, best)
            found = loss(drawn)
            if found < least:
                best, least = drawn, found
            task.advance(1, f"loss {least:.4f}")
    chosen = scaled(best, planner.progress)
    return Fitted(chosen, dict(zip(names, (2.0**best).tolist(), strict=True)), before, least)
