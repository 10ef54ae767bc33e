"""What a search may return and how it looks: legal networks, options of learning searches, strategies by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateurs.errors import PlanError
from secateurs.registry import load

if TYPE_CHECKING:
    from secateurs.search.problem import Strategy

DEFAULT_STRATEGY = "knapsack"
EVALUATIONS, VALUES, SEARCH = "evaluations.sqlite3", "values.sqlite3", "search"
"""Files of judged candidates and of what groups were measured to be worth, folder of a search's checkpoint, in a run's
folder."""


@dataclass(frozen=True)
class Legal:
    """Which networks a search may return.

    ``min_width``: fewest units of any group; ``blocks``: whether whole residual blocks may go; ``pinned``: groups
    that keep all their units; ``widest``: most units per group name, where that is fewer than there are; ``channels``:
    False keeps all units of all groups (where kernel elements or blocks are to go).
    """

    min_width: int = 1
    blocks: bool = True
    pinned: tuple[str, ...] = ()
    widest: Mapping[str, int] = field(default_factory=dict)
    channels: bool = True

    def pins(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of the groups ``names`` keep all their units."""
        return self.pinned if self.channels else tuple(names)


@dataclass(frozen=True)
class SearchOptions:
    """Of searches that judge candidates for real.

    ``episodes``: networks looked at; ``warm_start``: strategy to start from; ``agent``: kind of learner (each None:
    the strategy's default); ``folder``: where evaluations and checkpoints are kept (None: nowhere).
    """

    episodes: int | None = None
    warm_start: str | None = None
    agent: str | None = None
    folder: Path | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is not None, by name."""
        every = {"episodes": self.episodes, "warm_start": self.warm_start, "agent": self.agent}
        return {name: value for name, value in every.items() if value is not None}


def find_strategy(
    strategy: str | Strategy, keep: float | None = None, options: SearchOptions | None = None
) -> Strategy:
    """The strategy object for a registered name.

    Args:
        strategy: a registered name, or an object, which is returned as it is.
        keep: the ratio that ``uniform`` keeps.
        options: for strategies that have a constructor ``tuned(options, folder)``.

    Raises:
        PlanError: options were given to a strategy that takes none.
    """
    given = {} if options is None else options.given
    kind = load("strategies", strategy) if isinstance(strategy, str) else None
    tuned = getattr(kind, "tuned", None)
    if tuned is not None:
        folder = None if options is None else options.folder
        found: Strategy = tuned(given, None if folder is None else folder / SEARCH)
        return found
    if given:
        name = strategy if isinstance(strategy, str) else strategy.name
        typed = ", ".join(f"--{option.replace('_', '-')}" for option in given)
        raise PlanError(f"Strategy {name!r} does not learn, so it takes no {typed}. Leave it out, or choose lap.")
    if kind is None:
        assert not isinstance(strategy, str)
        return strategy
    found = kind() if keep is None else kind(keep=keep)
    return found
