"""Scores of every group by a criterion's name or the user's own function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from secateurs.errors import PlanError
from secateurs.importance.context import Context, find_criterion
from secateurs.progress import Progress, silent

if TYPE_CHECKING:
    from secateurs.data import Data
    from secateurs.data.tasks import Task
    from secateurs.importance.context import Criterion
    from secateurs.search.problem import Rows
    from secateurs.structure import Graph

Batches = Iterable[Any]
DEFAULT_CRITERION = "splamp"
DEFAULT_CRITERION_WITH_DATA = "measured"
SAME_ORDER = "fisher_obs"
"""Ranks the units of a group as the default does, and is quick."""
LEAST_SHARE = 0.1
"""Of its units a group keeps at least, where the scores do not tell what it is worth."""
SCORED, SCORED_BATCH = 512, 64
"""Images that loss-aware criteria are gathered over, and how many at once."""
SCORED_AT_ONCE = 2_500_000
"""Input numbers per batch of them at most, for every activation is held: 16 images at 224x224."""
MOST_WORK = 1e13
"""Multiply-adds that the default measures, at most: some quarter of an hour on two cores."""


def calibration_batches(data: Data) -> Batches:
    """The images that loss-aware criteria are gathered over, in batches."""
    from secateurs.data.calls import numbers
    from secateurs.data.images import BatchesOf

    images = data.calibration.take(SCORED)
    each = numbers(data.task.called_with(images.batch(np.arange(1))))
    return BatchesOf(images, max(1, min(SCORED_BATCH, SCORED_AT_ONCE // max(1, each))))


def calibration_inputs(data: Data) -> Iterable[Any]:
    """The same batches for what reads nothing but what the network is called with."""
    from secateurs.data.images import InputsOf

    batches = calibration_batches(data)
    return batches if data.asked is None else InputsOf(batches, data.task)


def default_criterion(data: Batches | None, graph: Graph, progress: Progress, *, order_only: bool = False) -> str:
    """What scores units best by our evidence: with calibration data a loss-aware criterion.

    That one reads the outputs of convolution and linear modules. Where it cannot, another one, and it is said.
    ``order_only``: what widths are worth plays no part, so nothing need be measured for it.
    """
    if data is None:
        return DEFAULT_CRITERION
    from secateurs.importance.statistics import made_elsewhere

    lacking = made_elsewhere(graph)
    if lacking is None:
        return SAME_ORDER if order_only or _takes_long(graph, data, progress) else DEFAULT_CRITERION_WITH_DATA
    weights = all(any(view.role == "out" for view in graph.views(group.name)) for group in graph.groups)
    instead = DEFAULT_CRITERION if weights else "activation"
    progress.say(
        f"Criterion {instead} instead of {DEFAULT_CRITERION_WITH_DATA}: no convolution or linear module makes the "
        f"units of group {lacking}."
    )
    return instead


def _takes_long(graph: Graph, data: Batches, progress: Progress) -> bool:
    from secateurs.data.images import BatchesOf
    from secateurs.importance.measured import work

    share = work(graph, len(data.images) if isinstance(data, BatchesOf) else None) / MOST_WORK
    if share <= 1:
        return False
    better = DEFAULT_CRITERION_WITH_DATA
    progress.say(
        f"Criterion {SAME_ORDER}, because {better}, which shares the budget out better, would take some "
        f"{15 * share:.0f} minutes on two cores. If you have the time: --criterion {better}."
    )
    return True


@dataclass(frozen=True)
class Scorer:
    """What the units of a network are worth by one criterion.

    ``criterion``: a registered name or the user's own function (None: the default, see :func:`default_criterion`);
    ``data``: batches for criteria that need them, judged by ``task`` (None: pairs of images and labels, by
    cross-entropy); ``rows``: where a criterion that measures keeps what it found;
    ``known``: scores float64 [units] per group, where they are known already.
    """

    graph: Graph
    criterion: str | Criterion | None = None
    data: Batches | None = None
    task: Task | None = None
    seed: int = 0
    rows: Rows | None = None
    known: Mapping[str, np.ndarray] | None = None
    progress: Progress = silent

    @cached_property
    def used(self) -> str | Criterion:
        """The given criterion or the default."""
        return self.criterion or default_criterion(self.data, self.graph, self.progress)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """Scores of every group of the network."""
        return self.of(self.graph, self.rows) if self.known is None else dict(self.known)

    def of(self, graph: Graph, rows: Rows | None = None) -> dict[str, np.ndarray]:
        """Scores of every group of ``graph``; calibration data is read only where the criterion needs it.

        Raises:
            PlanError: the criterion is unknown, needs data that was not given, or returned something else than scores.
        """
        from secateurs.importance.statistics import context_for
        from secateurs.structure.untouched import as_found

        with as_found(graph.model, self.data):
            context = context_for(graph, self.used, self.data, task=self.task, seed=self.seed, progress=self.progress)
            if context.statistics is not None:
                context.statistics.kept.update(rows=rows, task=self.task)
            return scores(graph, self.used, context, self.progress)

    def knowing(self, known: Mapping[str, np.ndarray], progress: Progress | None = None) -> Scorer:
        """The same, with these scores."""
        return replace(self, criterion=self.used, known=known, progress=progress or self.progress)


def scores(
    graph: Graph, criterion: str | Criterion, context: Context | None = None, progress: Progress = silent
) -> dict[str, np.ndarray]:
    """Scores of every group: {group name: float64 [units]}.

    Args:
        graph: the traced network.
        criterion: a registered name, or a function ``(graph, group name, context) -> scores``.
        context: seed and statistics.
        progress: told each group.

    Raises:
        PlanError: the criterion is unknown, needs calibration data that was not given, or returned something that
            is not one finite number of at least 0 per unit.
    """
    context = context or Context()
    found_criterion = find_criterion(criterion)
    label, score = found_criterion.name, found_criterion.score
    result = {}
    with progress.task(f"scores ({label})", len(graph.groups)) as task:
        for group in graph.groups:
            found = _numbers(score(graph, group.name, context))
            if found.shape != (group.units,) or not np.all(np.isfinite(found)):
                raise PlanError(
                    f"Criterion {label} gave {_describe(found)} for group {group.name}. "
                    f"It must return {group.units} finite numbers, one per unit."
                )
            if found.min(initial=0.0) < 0:
                raise PlanError(
                    f"Criterion {label} gave {found.min():.3g} for a unit of group {group.name}. Scores are added up "
                    f"to what a width is worth, so they must be at least 0: a unit without worth has 0."
                )
            result[group.name] = found
            task.advance()
    if result and not any(found.any() for found in result.values()):
        progress.say(f"Criterion {label} gives every unit 0: nothing says which units or groups are worth more.")
    return result


def _numbers(returned: object) -> np.ndarray:
    """What a criterion returned, as numbers; where it is none, an array of nothing."""
    from torch import Tensor

    if isinstance(returned, Tensor):
        returned = returned.detach().cpu()
    try:
        return np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty(0)


def _describe(found: np.ndarray) -> str:
    if found.ndim != 1 or np.all(np.isfinite(found)):
        return f"an array of shape {tuple(found.shape)}"
    return f"{int((~np.isfinite(found)).sum())} values that are not finite"
