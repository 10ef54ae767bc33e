"""From scores to value curves and to the units that stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from secateurs.errors import PlanError
from secateurs.importance.context import Context, Criterion
from secateurs.progress import Progress, silent
from secateurs.registry import load
from secateurs.structure.graph import Graph


def order(scores: np.ndarray) -> np.ndarray:
    """Units from most to least important, int64 [units]; of equals the first one first."""
    return np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")


def curve(scores: np.ndarray) -> np.ndarray:
    """V(w) = sum of the w largest scores for w = 0 … units, float64 [units + 1]."""
    scores = np.asarray(scores, dtype=np.float64)
    return np.concatenate([[0.0], np.cumsum(scores[order(scores)])])


def keep(scores: np.ndarray, width: int) -> tuple[int, ...]:
    """The ``width`` most important units in ascending order."""
    return tuple(sorted(order(scores)[:width].tolist()))


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
    score: Callable[[Graph, str, Context], np.ndarray] = (
        load("criteria", criterion) if isinstance(criterion, str) else criterion
    )
    label = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "the given function")
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
