"""The fastest network that keeps enough accuracy: bisection over the latency that the planner may spend.

Networks are judged cut and repaired, untrained, on the validation images; the whole card is in docs/methods.md,
"The fastest network within a loss". Numbers only in here: who plans, judges and measures is given.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from secateurs.budgets import ACCURACY, RESOURCES, ROUNDING, Metric
from secateurs.errors import InfeasibleBudgetError
from secateurs.plan import Measurement
from secateurs.planning.closed_loop import Attempt, Goal, Limits, Measurable
from secateurs.progress import Progress, silent
from secateurs.report.wording import apart, duration

C = TypeVar("C", bound=Measurable)

RESOLUTION = 0.01
"""Latency limits (as shares of dense) that are nearer to each other are not told apart: the model errs by as much."""
NEAR = 1.05
"""Networks that keep enough accuracy and are slower than the fastest of them by no more than this, by the model, are
measured beside it: there the model does not tell which is faster."""
MEASURED = 3
"""Of these at most."""
ROUNDS = 6
"""Searches at most, each under tighter model limits of what else is limited."""


@dataclass(frozen=True)
class Tried(Generic[C]):
    """A network that was tried. ``limit``: what its latency might be by the model, as a share of dense; ``accuracy``:
    0-1, repaired, on the validation images; ``holds``: whether that is enough."""

    limit: float
    choice: C
    accuracy: float
    holds: bool


@dataclass(frozen=True)
class Found(Generic[C]):
    """What the search ended with: the network, every one that was measured, and every one that was tried, each once and
    in order."""

    accepted: Attempt[C]
    attempts: list[Attempt[C]]
    tried: list[Tried[C]]


def bisect(
    attempt: Callable[[float], Tried[C]],
    reach: float,
    *,
    beyond: bool = False,
    resolution: float = RESOLUTION,
    told: Callable[[Tried[C], int], None] = lambda tried, left: None,
) -> list[Tried[C]]:
    """Networks tried on the way to the fastest one that holds, in order.

    Between a limit under which a network held (at first 1, where nothing need go) and one under which none did, the
    middle is tried, until they are ``resolution`` apart. Accuracy is not monotone in the limit, so the last network
    that held is the fastest that *was tried*, and one that was tried just below it did not hold.

    Args:
        attempt: tries the best network within a latency limit; raises InfeasibleBudgetError where there is none.
        reach: the latency of the fastest legal network; tried last, where everything else held.
        beyond: whether more than latency is limited, so that a limit of 1 is to be tried, too.
        resolution: of the limits.
        told: about every network, with how many may still come.

    Raises:
        InfeasibleBudgetError: ``beyond``, and there is no network within the other limits at any latency.
    """
    low, high, all_tried = reach, 1.0, list[Tried[C]]()

    def tried(limit: float) -> bool:
        nonlocal low, high
        found = attempt(limit)
        all_tried.append(found)
        if found.holds:
            high = min(limit, found.choice.predicted["latency"])
        else:
            low = limit
        told(found, steps_left(low, high, resolution))
        return found.holds

    if beyond and not tried(1.0):
        return all_tried
    while high - low > resolution:
        middle = (low + high) / 2
        try:
            tried(middle)
        except InfeasibleBudgetError:  # what else is limited takes this much latency at least
            low = middle
    if low == reach < high:
        with contextlib.suppress(InfeasibleBudgetError):
            tried(reach)
    return all_tried


def steps_left(low: float, high: float, resolution: float = RESOLUTION) -> int:
    """How many networks are still to be tried between two limits, at most."""
    return max(0, math.ceil(math.log2(max(high - low, 1e-9) / resolution) - 1e-9))


@dataclass
class FastestSearch(Generic[C]):
    """Plans, judges and measures networks, each of them once.

    Args:
        solve: the best network by the models within model limits (``latency`` and the others, as ratios to dense).
        judge: a network's accuracy (0-1) on the validation images, cut and repaired.
        measure: measures a network beside dense.
        dense: the dense network's accuracy on the same images.
        least: the accuracy that must stay.
        metric: what the judge's figures are; "accuracy" stands for any of them.
        goals: budgets of other resources, which hold as well.
        progress: told about every network.
    """

    solve: Callable[[Limits], C]
    judge: Callable[[C], float]
    measure: Callable[[C], Measurement]
    dense: float
    least: float
    goals: Sequence[Goal] = ()
    progress: Progress = silent
    metric: Metric = ACCURACY
    tried: list[Tried[C]] = field(default_factory=list)
    attempts: dict[str, Attempt[C]] = field(default_factory=dict)

    def run(self, reach: float) -> Found[C]:
        """The fastest network that holds, measured. ``reach``: latency of the fastest legal network, as a share of
        dense by the model.

        Raises:
            InfeasibleBudgetError: none that was tried holds, or none of those is within the other budgets.
        """
        limits = {goal.resource: goal.limit * goal.aim for goal in self.goals}
        for _ in range(ROUNDS):
            holding = self._holding(limits, reach)
            near = [one for one in holding if one.predicted["latency"] <= NEAR * holding[0].predicted["latency"]]
            measured = [self._measured(choice) for choice in near[:MEASURED]]
            fitting = [one for one in measured if all(goal.met(one) for goal in self.goals)]
            if fitting:
                accepted = min(fitting, key=_latency)
                return Found(accepted, list(self.attempts.values()), self.tried)
            limits = self._tightened(limits, measured[0])
        raise InfeasibleBudgetError(
            f"None of {len(self.attempts)} networks that keep enough accuracy is within the other budgets when "
            f"measured. Raise {self._other_options}, or allow a larger loss.",
            {"constraint": self.goals[0].resource},
        )

    def _holding(self, limits: Limits, reach: float) -> list[C]:
        """Networks within other limits that hold, the fastest by the model first.

        Raises:
            InfeasibleBudgetError: there is none.
        """
        began, before = time.monotonic(), len(self.tried)

        with self.progress.task("networks tried", 1 + steps_left(reach, 1.0)) as task:

            def attempt(limit: float) -> Tried[C]:
                choice = self.solve({"latency": limit, **limits})
                known = next((one.accuracy for one in self.tried if one.choice.key == choice.key), None)
                accuracy = self.judge(choice) if known is None else known
                return Tried(limit, choice, accuracy, self.metric.gain(self.least, accuracy) >= -ROUNDING)

            def told(tried: Tried[C], left: int) -> None:
                task.advance(1)
                if all(one.choice.key != tried.choice.key for one in self.tried):
                    self.tried.append(tried)
                    each = (time.monotonic() - began) / (len(self.tried) - before)
                    self.progress.say(self._described(tried, left, each * left))

            found = bisect(attempt, reach, beyond=bool(limits), told=told)
        holding = {one.choice.key: one.choice for one in found if one.holds}
        if not holding:
            raise self._none_holds(found)
        return sorted(holding.values(), key=lambda choice: choice.predicted["latency"])

    @property
    def _other_options(self) -> str:
        return " or ".join(RESOURCES[goal.resource].option for goal in self.goals)

    def _measured(self, choice: C) -> Attempt[C]:
        if choice.key not in self.attempts:
            self.attempts[choice.key] = Attempt(choice, self.measure(choice))
            found = _latency(self.attempts[choice.key])
            self.progress.say(
                f"Measured: {found:.1%} of dense latency, {choice.predicted['latency']:.1%} by the model."
            )
        return self.attempts[choice.key]

    def _tightened(self, limits: Limits, attempt: Attempt[C]) -> Limits:
        """Model limits under which the budgets that a network missed would have been met."""
        tighter = dict(limits)
        for goal in self.goals:
            if not goal.met(attempt):
                name = goal.resource
                wanted = goal.limit * goal.aim * attempt.choice.predicted[name] / goal.ratio(attempt)
                tighter[name] = min(wanted, 0.99 * limits[name])
        return tighter

    def _described(self, tried: Tried[C], left: int, seconds: float) -> str:
        lost = apart(self.metric, tried.accuracy - self.dense)
        room = self.metric.distance(tried.accuracy - self.least)
        few = "too few" if self.metric.better == "higher" else "too much"
        held = f"{room} to spare" if tried.holds else f"{room} {few}"
        more = f"; {left} more at most, about {duration(seconds)}" if left else ""
        return (
            f"Network {len(self.tried)}, {tried.choice.predicted['latency']:.1%} of dense latency by the model: "
            f"validation {self.metric.name} {self.metric.said(tried.accuracy)} repaired ({lost} against dense), "
            f"{held}{more}."
        )

    def _none_holds(self, tried: Sequence[Tried[C]]) -> InfeasibleBudgetError:
        if not tried:
            return InfeasibleBudgetError(
                "This strategy finds no network that is faster than dense by the model. Choose --strategy knapsack, or "
                "give the search more freedom (a smaller --min-width, --blocks, fewer --keep).",
                {"constraint": "latency"},
            )
        nearest = max(tried, key=lambda one: self.metric.worth(one.accuracy))
        networks, name, said = {one.choice.key for one in tried}, self.metric.name, self.metric.said
        among = " within the other budgets" if self.goals else ""
        more = f", raise {self._other_options}" if self.goals else ""
        return InfeasibleBudgetError(
            f"None of {len(networks)} networks{among} tried keeps a validation {name} of {said(self.least)}: "
            f"the nearest, at {nearest.choice.predicted['latency']:.1%} of the dense latency by the model, has "
            f"{said(nearest.accuracy)} when repaired, dense {said(self.dense)}. Allow a larger loss{more}, or "
            f"give --latency and let --epochs of fine-tuning bring {name} back.",
            {"constraint": "accuracy", "nearest": nearest.accuracy, "least": self.least},
        )


def _latency(attempt: Attempt[C]) -> float:
    ratio = attempt.measured.ratio
    assert ratio is not None
    return ratio
