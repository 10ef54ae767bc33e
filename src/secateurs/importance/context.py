"""What a criterion is given beside the graph, and what a criterion is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from secateurs.errors import PlanError
from secateurs.provenance import name_of
from secateurs.registry import load

if TYPE_CHECKING:
    from secateurs.importance.statistics import Statistics
    from secateurs.structure.graph import Graph

Function = TypeVar("Function", bound=Callable[..., np.ndarray])

KINDS = ("outputs", "norms", "gradients", "inputs", "moments", "images", "dynamics")
"""What can be gathered from calibration data (see :class:`secateurs.importance.statistics.Statistics`)."""


@dataclass(frozen=True)
class Context:
    """``seed``: of anything random; ``statistics``: gathered over calibration data, None for data-free criteria."""

    seed: int = 0
    statistics: Statistics | None = None

    def gathered(self, criterion: str, kind: str) -> Statistics:
        """The statistics, for a criterion that needs ``kind``.

        Raises:
            PlanError: they were not gathered.
        """
        if self.statistics is None:
            raise PlanError(
                f"Criterion {criterion} needs calibration data, but none was given. "
                "Give --data (data= in Python), or choose a data-free criterion such as splamp."
            )
        if kind not in self.statistics.kinds:
            raise PlanError(
                f"Criterion {criterion} needs {kind!r} statistics; the pass gathered {sorted(self.statistics.kinds)}. "
                f"Mark the function with @needs({kind!r}) or add {kind!r} to gather(kinds=...)."
            )
        return self.statistics


class Criterion(Protocol):
    """Scores the units of one group. A user's own function with these three arguments is one.

    What it says of itself are marks, :func:`needs` and :func:`within_groups`; :class:`Marked` has their defaults.
    """

    def __call__(self, graph: Graph, group: str, context: Context) -> np.ndarray:
        """Scores float64 [units]; higher = keep. Strategies that trade groups against each other take them as
        comparable across groups."""


def needs(*kinds: str) -> Callable[[Function], Function]:
    """A decorator that says what a criterion needs from calibration data: some of :data:`KINDS`.

    Raises:
        PlanError: an unknown kind.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise PlanError(f"Statistics {unknown[0]!r} are unknown. Known: {', '.join(KINDS)}.")

    def mark(function: Function) -> Function:
        function.needs = frozenset(kinds)  # type: ignore[attr-defined]
        return function

    return mark


def within_groups(function: Function) -> Function:
    """A decorator for a criterion whose scores say which units of a group to keep, and not what a group is worth beside
    another; each group then keeps a least share of its units."""
    function.compares_groups = False  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True)
class Marked:
    """A criterion and all that is read of it.

    ``name``: the registered one, or the function's; ``needs``: statistics that it reads, none for a data-free one;
    ``compares_groups``: its scores say what a group is worth beside another.
    """

    name: str
    score: Criterion
    needs: frozenset[str] = frozenset()
    compares_groups: bool = True


def find_criterion(criterion: str | Criterion) -> Marked:
    """The criterion of a registered name, or the user's own function: the one place where its marks are looked for.

    Raises:
        PlanError: the name is unknown.
    """
    score: Criterion = load("criteria", criterion) if isinstance(criterion, str) else criterion
    marks = {name: getattr(score, name) for name in ("needs", "compares_groups") if hasattr(score, name)}
    return Marked(name_of(criterion), score, **marks)
