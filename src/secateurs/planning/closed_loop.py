"""From cost models to a plan whose *measured* costs fit: plan, measure, correct by the measured ratios, again.

All figures are ratios to the dense network in here, so that clock drift between rounds cancels. A model may be off by
some percent; only its local error matters, and that is known after the first round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from secateurs.budgets import RESOURCES, Limited
from secateurs.errors import InfeasibleBudgetError, TargetError
from secateurs.plan import Measurement
from secateurs.progress import Progress, silent

Limits = dict[str, float]
"""By the name of a limit (see :class:`secateurs.budgets.Limited`), what the search's model may say at most, as a ratio
to dense."""


class Measurable(Protocol):
    """A candidate network. ``key``: equal for equal networks; ``predicted``: by the name of a limit, model / dense
    model."""

    @property
    def key(self) -> str: ...

    @property
    def predicted(self) -> Mapping[str, float]: ...


C = TypeVar("C", bound=Measurable)


@dataclass(frozen=True)
class Attempt(Generic[C]):
    """One measured candidate. ``measured``: on the run's first target; ``on``: by name on every one of several."""

    choice: C
    measured: Measurement
    on: Mapping[str, Measurement] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """When a measured candidate is within one budget.

    ``limit``: budget as a ratio to dense; ``resource``: the limit's name; ``dense``: what the dense network takes, in
    the resource's unit; ``use_at_least``: share of the limit that must be used by one goal at least;
    ``margin``: how far below the limit the upper bound must lie, so that a later measurement agrees; ``aim``: where in
    the window to aim.
    """

    limit: float
    resource: str = "latency"
    dense: float = 1.0
    use_at_least: float = 0.94
    margin: float = 0.004
    aim: float = 0.975

    @property
    def limited(self) -> Limited:
        """What is limited, and on which target."""
        return Limited.of(self.resource)

    @property
    def exact(self) -> bool:
        """Whether the model is the truth: nothing to measure, nothing to correct."""
        return self.resource == "macs"

    def seen(self, attempt: Attempt[C]) -> Measurement:
        """The candidate on the target that this budget is for."""
        target = self.limited.target
        return attempt.on[target] if target else attempt.measured

    def ratio(self, attempt: Attempt[C]) -> float:
        """What the candidate takes, as a ratio to dense.

        Raises:
            TargetError: the target cannot tell.
        """
        if self.exact:
            return attempt.choice.predicted[self.resource]
        measured = self.seen(attempt)
        figures = {
            "latency": measured.ratio,
            "memory": measured.memory_bytes and measured.memory_bytes / self.dense,
            "file_size": measured.file_bytes and measured.file_bytes / self.dense,
        }
        found = figures[self.limited.resource]
        if found is None:
            raise untold(self.resource)
        return found

    def upper(self, attempt: Attempt[C]) -> float:
        """Upper end of that ratio's 95 % interval, where it has one."""
        upper = self.seen(attempt).ratio_upper if self.limited.timed else None
        return self.ratio(attempt) if upper is None else upper

    def met(self, attempt: Attempt[C]) -> bool:
        """Whether the upper bound of the ratio is within the limit."""
        return self.upper(attempt) <= self.limit * (1 - self.margin) * (1 + 1e-9)

    def used(self, attempt: Attempt[C]) -> bool:
        """Whether enough of the budget is used, with a little to spare."""
        return self.ratio(attempt) >= self.limit * (self.use_at_least + self.margin)


def untold(name: str) -> TargetError:
    """The error for a budget on what the target cannot measure; ``name``: the limit's."""
    what = RESOURCES[Limited.of(name).resource]
    return TargetError(
        f"This target does not tell the {what.words} of a network. Leave out {what.option}, or choose another target."
    )


_WINDOWS = {"latency": (0.004, 0.975), "memory": (0.01, 0.97), "file_size": (0.0, 0.99), "macs": (0.0, 1.0)}
"""Margin and aim: figures that scatter keep their distance."""


def goal_for(resource: str, limit: float, dense: float) -> Goal:
    """The goal for a budget; ``resource``: the limit's name; ``limit``: as a ratio to ``dense``, which is in the
    resource's unit."""
    margin, aim = _WINDOWS[Limited.of(resource).resource]
    return Goal(limit, resource, dense, margin=margin, aim=aim)


BINDS = 0.97
"""A model cost this near to its limit is what stops the search."""


@dataclass
class Track:
    """One budget's part of the loop: the model limits known to be too tight and too loose."""

    goal: Goal
    tight: float = 0.0
    loose: float = float("inf")

    def first(self) -> float:
        """The model limit to begin with."""
        return self.goal.limit * self.goal.aim

    def binds(self, limit: float, attempt: Attempt[C]) -> bool:
        """Whether the candidate used what the model limit allowed."""
        return attempt.choice.predicted[self.goal.resource] >= BINDS * limit

    def next(self, limit: float, attempt: Attempt[C], *, again: bool) -> float:
        """The next model limit, the same where no plan lies between the two that are known.

        ``again``: the last limit gave a network that was measured before, so its ratio says nothing new.
        """
        if self.goal.exact:
            return limit
        wanted = self.first() * attempt.choice.predicted[self.goal.resource] / self.goal.ratio(attempt)
        if not again and self.tight < wanted < self.loose:
            return wanted
        if self.loose == float("inf"):
            return (limit if again else self.tight) * 1.03
        if self.loose - self.tight < 0.005 * self.loose:
            return self.tight or limit
        return (max(self.tight, 0.5 * self.loose) + self.loose) / 2


@dataclass
class Loop(Generic[C]):
    """State of the loop: what was measured, and what is known of every budget's model limit."""

    tracks: tuple[Track, ...]
    attempts: list[Attempt[C]] = field(default_factory=list)

    def met(self, attempt: Attempt[C]) -> bool:
        """Whether every budget is met."""
        return all(track.goal.met(attempt) for track in self.tracks)

    def accepted(self, attempt: Attempt[C]) -> bool:
        """Whether every budget is met and one of them is used up."""
        return self.met(attempt) and any(track.goal.used(attempt) for track in self.tracks)

    def learn(self, limits: Limits, attempt: Attempt[C], *, again: bool) -> Limits:
        """The next limits: tighter where a budget is missed, looser where all leave room; the same: nothing is left.

        Where all budgets leave room, only the ones that stopped the search are loosened.
        """
        moving = [track for track in self.tracks if not track.goal.met(attempt)]
        for track in moving:
            track.loose = min(track.loose, limits[track.goal.resource])
        if not moving:
            moving = [t for t in self.tracks if t.binds(limits[t.goal.resource], attempt)] or list(self.tracks)
            for track in moving:
                track.tight = max(track.tight, limits[track.goal.resource])
        changed = {t.goal.resource: t.next(limits[t.goal.resource], attempt, again=again) for t in moving}
        return {**limits, **changed}

    def known(self, choice: C) -> Attempt[C] | None:
        """The attempt with the same network, if there was one."""
        return next((attempt for attempt in self.attempts if attempt.choice.key == choice.key), None)

    def best(self) -> Attempt[C] | None:
        """The attempt that meets every budget and uses most of one."""
        met = [attempt for attempt in self.attempts if self.met(attempt)]
        return max(met, key=lambda attempt: self.share(attempt), default=None)

    def share(self, attempt: Attempt[C]) -> float:
        """The largest share of a budget that a candidate takes."""
        return max(track.goal.upper(attempt) / track.goal.limit for track in self.tracks)


def close(
    goals: Sequence[Goal],
    solve: Callable[[Limits], C],
    measure: Callable[[C], Attempt[C]],
    *,
    rounds: int = 10,
    progress: Progress = silent,
) -> tuple[Attempt[C], list[Attempt[C]]]:
    """The accepted candidate, and every measured one in order.

    Accepted is the first that meets every budget and uses at least 94 % of one; where no legal plan does, the one that
    meets them and uses most.

    Args:
        goals: one per budget.
        solve: the best network by the models within model limits; raises InfeasibleBudgetError.
        measure: measures a network beside dense.
        rounds: plans measured at most.
        progress: told about every round.

    Raises:
        InfeasibleBudgetError: from ``solve`` where nothing is within the limits by the models; or no measured plan was.
    """
    search: Loop[C] = Loop(tuple(Track(goal) for goal in goals))
    limits = {track.goal.resource: track.first() for track in search.tracks}
    for _ in range(4 * rounds):
        try:
            choice = solve(limits)
        except InfeasibleBudgetError:
            if search.best() is None:
                raise
            break
        seen = search.known(choice)
        attempt = seen or measure(choice)
        if seen is None:
            search.attempts.append(attempt)
            progress.say(describe(search, attempt))
            if search.accepted(attempt):
                return attempt, search.attempts
        following = search.learn(limits, attempt, again=seen is not None)
        if following == limits or len(search.attempts) >= rounds:
            break
        limits = following
    best = search.best()
    if best is None:
        raise _missed(search)
    return best, search.attempts


def _missed(search: Loop[C]) -> InfeasibleBudgetError:
    nearest = min(search.attempts, key=lambda attempt: search.share(attempt))
    goal = max((track.goal for track in search.tracks), key=lambda goal: goal.upper(nearest) / goal.limit)
    what = goal.limited
    return InfeasibleBudgetError(
        f"None of {len(search.attempts)} plans met the budget of {goal.limit:.1%} of the dense {what.words} when "
        f"measured; the nearest took {goal.ratio(nearest):.1%} (at most {goal.upper(nearest):.1%}). "
        f"Raise {what.option}, or measure on a quieter machine.",
        {"constraint": goal.resource},
    )


def describe(search: Loop[C], attempt: Attempt[C]) -> str:
    """One line about a round."""
    parts, several = [], len(search.tracks) > 1
    for goal in (track.goal for track in search.tracks):
        name = f"{goal.limited.words} " if several else ""
        figures = f"{name}predicted {attempt.choice.predicted[goal.resource]:.1%} of dense"
        if not goal.exact:
            figures += f", measured {goal.ratio(attempt):.1%} (at most {goal.upper(attempt):.1%})"
        parts.append(f"{figures}, {goal.ratio(attempt) / goal.limit:.1%} of the budget")
    if search.accepted(attempt):
        outcome = "accepted"
    elif search.met(attempt):
        outcome = "part of the budget is unused: loosen"
    else:
        over = any(track.goal.ratio(attempt) > track.goal.limit for track in search.tracks)
        outcome = "over the budget: tighten" if over else "too close to the budget to be sure: tighten"
    return f"Plan {len(search.attempts)}: {'; '.join(parts)}: {outcome}."
