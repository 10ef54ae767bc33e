"""From a latency model to a plan whose *measured* latency fits: plan, measure, correct by the measured ratio, again.

Latencies are ratios to the dense network in here, so that clock drift between rounds cancels. The model may be off by
some percent; only its local error matters, and that is known after the first round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from secateurs.errors import InfeasibleBudgetError
from secateurs.plan import Measurement
from secateurs.progress import Progress, silent


class Choice(Protocol):
    """A candidate network. ``key``: equal for equal networks; ``predicted``: model latency / dense model latency."""

    @property
    def key(self) -> str: ...

    @property
    def predicted(self) -> float: ...


C = TypeVar("C", bound=Choice)


@dataclass(frozen=True)
class Goal:
    """When a measured candidate is accepted.

    ``limit``: budget as a ratio to dense; ``use_at_least``: share of it that must be used; ``margin``: how far below
    the limit the upper 95 % bound must lie, so that a later measurement agrees; ``aim``: where in the window to aim.
    """

    limit: float
    use_at_least: float = 0.94
    margin: float = 0.004
    aim: float = 0.975

    def met(self, measured: Measurement) -> bool:
        """Whether the upper bound of the ratio is within the limit."""
        return upper(measured) <= self.limit * (1 - self.margin)

    def used(self, measured: Measurement) -> bool:
        """Whether enough of the budget is used, with a little to spare."""
        return ratio(measured) >= self.limit * (self.use_at_least + self.margin)


@dataclass(frozen=True)
class Attempt(Generic[C]):
    """One measured candidate."""

    choice: C
    measured: Measurement


@dataclass
class Search(Generic[C]):
    """State of the loop: what was measured, and the model limits known to be too tight and too loose."""

    goal: Goal
    attempts: list[Attempt[C]] = field(default_factory=list)
    tight: float = 0.0
    loose: float = float("inf")

    def next_limit(self) -> float | None:
        """The model limit to plan for next, or None when no plan lies between the two that are known."""
        wanted = self.goal.limit * self.goal.aim
        if self.attempts:
            last = self.attempts[-1]
            wanted *= last.choice.predicted / ratio(last.measured)
        if self.tight < wanted < self.loose:
            return wanted
        if self.loose == float("inf"):
            return self.tight * 1.03
        return self.between()

    def between(self) -> float | None:
        """Halfway between the known limits, None when they are closer than half a percent."""
        if self.loose - self.tight < 0.005 * self.loose:
            return None
        return (max(self.tight, 0.5 * self.loose) + self.loose) / 2

    def learn(self, limit: float, attempt: Attempt[C]) -> None:
        """Move one of the known limits."""
        if self.goal.met(attempt.measured):
            self.tight = max(self.tight, limit)
        else:
            self.loose = min(self.loose, limit)

    def known(self, choice: C) -> Attempt[C] | None:
        """The attempt with the same network, if there was one."""
        return next((attempt for attempt in self.attempts if attempt.choice.key == choice.key), None)

    def best(self) -> Attempt[C] | None:
        """The attempt that meets the budget and uses most of it."""
        met = [attempt for attempt in self.attempts if self.goal.met(attempt.measured)]
        return max(met, key=lambda attempt: ratio(attempt.measured), default=None)


def ratio(measured: Measurement) -> float:
    """Measured ratio to dense."""
    assert measured.ratio is not None, "candidates are measured beside the dense network"
    return measured.ratio


def upper(measured: Measurement) -> float:
    """Upper 95 % bound of the measured ratio to dense."""
    return ratio(measured) if measured.ratio_upper is None else measured.ratio_upper


def close(
    goal: Goal,
    solve: Callable[[float], C],
    measure: Callable[[C], Measurement],
    *,
    rounds: int = 10,
    progress: Progress = silent,
) -> tuple[Attempt[C], list[Attempt[C]]]:
    """The accepted candidate, and every measured one in order.

    Accepted is the first that meets the budget and uses at least 94 % of it; where no legal plan does, the one that
    meets it and uses most.

    Args:
        goal: when to accept.
        solve: the best network by the model within a model limit (a ratio to dense); raises InfeasibleBudgetError.
        measure: measures a network beside dense.
        rounds: plans measured at most.
        progress: told about every round.

    Raises:
        InfeasibleBudgetError: from ``solve`` where nothing is fast enough by the model; or no measured plan was.
    """
    search: Search[C] = Search(goal)
    limit, solved = search.next_limit(), 0
    while limit is not None and len(search.attempts) < rounds and solved < 4 * rounds:
        solved += 1
        try:
            choice = solve(limit)
        except InfeasibleBudgetError:
            if search.best() is None:
                raise
            break
        seen = search.known(choice)
        if seen is None:
            attempt = Attempt(choice, measure(choice))
            search.attempts.append(attempt)
            progress.say(describe(goal, attempt, len(search.attempts)))
            if goal.met(attempt.measured) and goal.used(attempt.measured):
                return attempt, search.attempts
            search.learn(limit, attempt)
            limit = search.next_limit()
        else:
            search.learn(limit, seen)
            limit = search.between() if search.loose != float("inf") else limit * 1.03
    best = search.best()
    if best is None:
        nearest = min(search.attempts, key=lambda attempt: upper(attempt.measured))
        raise InfeasibleBudgetError(
            f"None of {len(search.attempts)} plans met the budget of {goal.limit:.1%} of the dense latency when "
            f"measured; the nearest took {ratio(nearest.measured):.1%} (at most {upper(nearest.measured):.1%}). "
            f"Raise --latency, or measure on a quieter machine."
        )
    return best, search.attempts


def describe(goal: Goal, attempt: Attempt[C], number: int) -> str:
    """One line about a round."""
    measured = attempt.measured
    share = ratio(measured) / goal.limit
    if not goal.met(measured):
        outcome = "over the budget: tighten" if share > 1 else "too close to the budget to be sure: tighten"
    else:
        outcome = "accepted" if goal.used(measured) else "part of the budget is unused: loosen"
    return (
        f"Plan {number}: predicted {attempt.choice.predicted:.1%} of dense, measured {ratio(measured):.1%} "
        f"(at most {upper(measured):.1%}), {share:.1%} of the budget: {outcome}."
    )
