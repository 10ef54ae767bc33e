"""What a schedule is: when units go while a network trains, seen from the run that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import nn

if TYPE_CHECKING:
    from secateurs.data.images import Data
    from secateurs.plan import Plan
    from secateurs.progress import Progress
    from secateurs.search.legal import Legal
    from secateurs.search.problem import Solution
    from secateurs.structure import Graph


class Choice(Protocol):
    """A network that a planner chose. ``solution``: its widths and removed blocks."""

    @property
    def solution(self) -> Solution: ...


class Planning(Protocol):
    """What a schedule needs of the run's planner (:class:`secateurs.planning.planner.Planner`)."""

    @property
    def graph(self) -> Graph: ...

    @property
    def legal(self) -> Legal: ...

    @property
    def scorer(self) -> Any:
        """Scores units of any network by the run's criterion."""

    @property
    def scores(self) -> dict[str, np.ndarray]: ...

    def solve(self, limits: Mapping[str, float]) -> Choice:
        """The best network within ``limits``, by resource as ratios to dense."""

    def plan(self, choice: Any) -> Plan:
        """The choice as a plan for the dense network."""

    def knowing(self, scores: Mapping[str, np.ndarray], progress: Progress | None = None) -> Any:
        """The same planner with these scores."""

    def allowing(self, legal: Legal) -> Any:
        """The same planner with other legal networks."""


class Training(Protocol):
    """What a schedule needs of the run's trainer (:class:`secateurs.jobs.training.Trainer`)."""

    @property
    def dense(self) -> nn.Module: ...

    @property
    def example(self) -> Any: ...

    @property
    def data(self) -> Data: ...

    @property
    def progress(self) -> Progress: ...

    @property
    def epochs(self) -> int:
        """Of the whole run."""

    @property
    def steps_per_epoch(self) -> int: ...

    def train(self, student: nn.Module, name: str, epochs: int, plan: Plan | None = None, masks: Any = None) -> Any:
        """``student`` (in place) after ``epochs``, from checkpoints of that name where there are some."""

    def mend(self, small: nn.Module, plan: Plan) -> tuple[str, list[str]]:
        """Repair a cut network (in place); what was done ("" for nothing), and lines for the user."""

    def traced(self, module: nn.Module) -> Graph:
        """The structure of the dense network or of what is left of it."""

    def watcher(self, graph: Graph) -> Any:
        """What scores units by how their filters change."""


@dataclass(frozen=True)
class Prepared:
    """What the final cut starts from: the dense network's shape with trained weights (None: untouched), and what
    knows the scores of its units (the given planner, or one made of it)."""

    carrier: nn.Module | None
    planner: Any
    notes: tuple[str, ...] = ()


class Schedule(Protocol):
    """When units go while the network trains. Registered in :data:`secateurs.recover.schedules.SCHEDULES`.

    ``settles``: whether it trains once more when the plan was measured, down to exactly its widths; ``plans_anew``:
    whether it asks for further plans while the network trains.
    """

    @property
    def settles(self) -> bool: ...

    @property
    def plans_anew(self) -> bool: ...

    def epochs_before(self, epochs: int) -> int:
        """Epochs of training before the final cut, of ``epochs`` in all."""

    def prepare(self, trainer: Training, planner: Planning, limits: Mapping[str, float]) -> Prepared:
        """What comes before the plan. ``limits``: by resource, as ratios to dense.

        Raises:
            PlanError: the network cannot be trained under this schedule.
            InfeasibleBudgetError: no network is within the limits without removing blocks.
        """

    def check(self, trainer: Training, planner: Planning) -> None:
        """Before the search: whether what it finds can be trained down to.

        Raises:
            PlanError: it cannot.
        """

    def settle(self, trainer: Training, planner: Planning, solution: Solution) -> Prepared:
        """What comes after the plan was measured, where the schedule settles."""


class Plain:
    """The parts that most schedules share: nothing is done before or after the plan."""

    settles = False
    plans_anew = False

    def epochs_before(self, epochs: int) -> int:
        """None."""
        return 0

    def prepare(self, trainer: Training, planner: Planning, limits: Mapping[str, float]) -> Prepared:
        """The dense network and the planner as they are."""
        return Prepared(None, planner)

    def check(self, trainer: Training, planner: Planning) -> None:
        """Nothing to check."""

    def settle(self, trainer: Training, planner: Planning, solution: Solution) -> Prepared:
        """Nothing to do."""
        return Prepared(None, planner)
