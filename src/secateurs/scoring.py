"""Scores of every group by a criterion's name or the user's own function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from secateurs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from secateurs.importance.context import Criterion
    from secateurs.search.problem import Rows
    from secateurs.structure import Graph

    Loss = Callable[[Any, Any], Tensor]

Batches = Iterable[tuple[Any, Any]]
DEFAULT_CRITERION = "splamp"
DEFAULT_CRITERION_WITH_DATA = "measured"
SAME_ORDER = "fisher_obs"
"""Ranks the units of a group as the default does, and is quick."""
MOST_WORK = 1e13
"""Multiply-adds that the default measures, at most: some quarter of an hour on two cores."""


def name_of(criterion: str | Criterion) -> str:
    """A criterion's registered name, or the name of the user's function."""
    return criterion if isinstance(criterion, str) else getattr(criterion, "__name__", type(criterion).__name__)


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
    from secateurs.measured_values import work

    share = work(graph, len(data.images) if isinstance(data, BatchesOf) else None) / MOST_WORK
    if share <= 1:
        return False
    better = DEFAULT_CRITERION_WITH_DATA
    progress.say(
        f"Criterion {SAME_ORDER}, because {better}, which shares the budget out better, would take some "
        f"{15 * share:.0f} minutes on two cores. If you have the time: --criterion {better}."
    )
    return True


def score(
    graph: Graph,
    criterion: str | Criterion,
    data: Batches | None,
    loss: Loss | None,
    seed: int,
    progress: Progress,
    rows: Rows | None = None,
    classes: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Scores of every group; calibration data is read only where the criterion needs it.

    ``rows``: where a criterion that measures keeps what it found; ``classes``: the outputs that count, None for all.
    """
    from secateurs.importance.statistics import context_for
    from secateurs.importance.values import scores

    among = loss or cross_entropy_among(classes)
    context = context_for(graph, criterion, data, loss=among, seed=seed, progress=progress)
    if context.statistics is not None:
        context.statistics.kept.update(rows=rows, classes=classes)
    return scores(graph, criterion, context, progress)


def cross_entropy_among(classes: Sequence[int] | None) -> Loss:
    """Mean cross-entropy as if the network had these outputs only; None: all."""
    from secateurs.data.accuracy import among
    from secateurs.importance.statistics import cross_entropy, logits_of

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return cross_entropy(*among(logits_of(outputs), targets, classes))

    return loss
