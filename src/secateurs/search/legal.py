"""What a search may return and how it looks: legal networks, options of learning searches, strategies by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from secateurs.errors import PlanError, checked
from secateurs.registry import completed, completed_kind, load

if TYPE_CHECKING:
    from secateurs.search.problem import Strategy

DEFAULT_STRATEGY = "knapsack"
PRECISION_MIXES = ("off", "auto")
"""On targets of quantised files: every layer is quantised that can be, or as the search decides."""
MIXING = ("knapsack", "splamp")
"""Strategies that decide widths and precisions together."""
VALIDATED = 500
"""Validation images that judge a candidate, by default."""


@dataclass(frozen=True)
class Legal:
    """Which networks a search may return.

    ``min_width``: fewest units of any group (None: one, or ``share`` of its units); ``share``: used where the scores do
    not tell what groups are worth; ``blocks``: whether whole residual blocks may go; ``pinned``: groups
    that keep all their units; ``widest``: most units per group name, where that is fewer than there are; ``channels``:
    False keeps all units of all groups (where kernel elements or blocks are to go).
    """

    min_width: int | None = None
    blocks: bool = True
    pinned: tuple[str, ...] = ()
    widest: Mapping[str, int] = field(default_factory=dict)
    channels: bool = True
    share: float = 0.0

    def __post_init__(self) -> None:
        advice = "Legal has min_width, share, blocks, pinned, widest and channels"
        whole, names = Annotated[int, Field(ge=1)], tuple[str, ...]
        kinds: dict[str, Any] = {"min_width": whole | None, "share": Annotated[float, Field(ge=0, le=1)]}
        kinds |= {"blocks": bool, "channels": bool, "pinned": names, "widest": Mapping[str, Any]}
        for name, kind in kinds.items():
            checked(kind, getattr(self, name), f"Legal({name}=)", advice)

    def fewest(self, units: int) -> int:
        """Least width of a group of so many units."""
        if self.min_width is not None:
            return min(self.min_width, units)
        return max(1, math.ceil(self.share * units - 1e-9))

    def pins(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of the groups ``names`` keep all their units."""
        return self.pinned if self.channels else tuple(names)


@dataclass(frozen=True)
class SearchOptions:
    """Of searches that judge candidates for real.

    ``episodes``: networks looked at; ``warm_start``: strategy to start from; ``agent``: kind of learner (each None:
    the strategy's default); ``checkpoint``: folder of what a search goes on from; ``evaluations`` and ``values``: files
    of judged candidates and of what groups were measured to be worth (each None: kept nowhere).
    """

    episodes: int | None = None
    warm_start: str | None = None
    agent: str | None = None
    checkpoint: Path | None = None
    evaluations: Path | None = None
    values: Path | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is not None, by name."""
        every = {"episodes": self.episodes, "warm_start": self.warm_start, "agent": self.agent}
        return {name: value for name, value in every.items() if value is not None}


def find_strategy(strategy: str | Strategy, options: SearchOptions | None = None) -> Strategy:
    """The strategy object for a registered name.

    Args:
        strategy: a registered name, or an object, which is returned as it is.
        options: for strategies that learn, see :meth:`secateurs.search.problem.Strategy.tuned`.

    Raises:
        PlanError: the name is unknown, or options were given to a strategy that takes none.
    """
    from secateurs.search.problem import Strategy, takes_none

    given = {} if options is None else options.given
    if not isinstance(strategy, str):
        if given:
            raise takes_none(strategy.name, given)
        whole: Strategy = completed(strategy, Strategy)
        return whole
    folder = None if options is None else options.checkpoint
    found: Strategy = completed(strategy_kind(strategy).tuned(given, folder), Strategy)
    return found


def strategy_kind(name: str) -> type[Strategy]:
    """What is registered as ``name``, with every member that :class:`Strategy` declares.

    Raises:
        PlanError: the name is unknown.
    """
    from secateurs.search.problem import Strategy

    kind: type[Strategy] = completed_kind(load("strategies", name), Strategy)
    return kind


def check_mixing(name: str) -> None:
    """Nothing, if a strategy of this name decides widths and precisions together.

    Raises:
        PlanError: it does not.
    """
    if name not in MIXING:
        raise PlanError(
            f"A mix of precisions is solved exactly, which strategy {name!r} does not. Give --strategy "
            f"{' or '.join(MIXING)}, or leave --precision-mix out."
        )
