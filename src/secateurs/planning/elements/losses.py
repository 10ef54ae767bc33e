"""What layers are worth in one currency: the measured increase of the loss when something of them goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from secateurs.elements.selection import SUFFIX, patterns
from secateurs.judging.evaluator import make_evaluator
from secateurs.plan import Plan
from secateurs.progress import Progress, silent
from secateurs.search.rows import MemoryRows
from secateurs.search.values import keep

if TYPE_CHECKING:
    from secateurs.data import Data
    from secateurs.planning.elements.space import ElementSpace
    from secateurs.search.problem import Rows

_JUDGED = 256


def measured_losses(
    space: ElementSpace,
    scores: Mapping[str, np.ndarray],
    images: Data,
    *,
    channels: bool = True,
    rows: Rows | None = None,
    progress: Progress = silent,
) -> dict[str, tuple[float, ...]]:
    """Increases of the loss on calibration images when one group, one layer's elements or one block goes, by name.

    Groups lose half and three quarters of their units, layers 5 and 7 of 9 kernel elements, blocks everything;
    statistics are refreshed each time. The half of the calibration images that statistics come from is not judged on.
    Source: the common currency is SPDY's idea (arXiv 2201.13096), measured here instead of fitted. Cost: an evaluation
    per block, two per group and layer.

    Args:
        space: what can be chosen.
        scores: of the units, by which they stay.
        images: their calibration images are used.
        channels: False measures layers and blocks only.
        rows: where losses are kept.
        progress: shows candidates.
    """
    calibration, graph = images.calibration, space.graph
    half = len(calibration) // 2
    judged = calibration.select(np.arange(half, len(calibration))[:_JUDGED])
    evaluator = make_evaluator(graph, scores, calibration.take(half), judged, task=images.task)
    empty = graph.plan({}, ())

    kept: Rows = MemoryRows() if rows is None else rows

    def loss(name: str, make: Callable[[], Plan]) -> float:
        key = f"element-losses/{evaluator.identity}/{space.scope}/{name}"
        held = kept.get(key)
        if held is None:
            found = evaluator.judge(make())
            held = {"accuracy": found.accuracy, "seconds": found.seconds, "details": dict(found.details)}
            kept.put(key, {**held, "widths": [], "removed": []})
        return float(held["details"]["loss"])

    base = loss("dense", lambda: empty)
    plans = _anchor_plans(space, scores, empty, channels)
    losses: dict[str, tuple[float, ...]] = dict.fromkeys((group.name for group in graph.spec.groups), (1.0, 1.0))
    with progress.task("what layers are worth", sum(len(made) for made in plans.values())) as task:
        for name, made in plans.items():
            found = []
            for key, make in made:
                found.append(max(loss(key, make) - base, 1e-4 * max(base, 1e-3)))
                task.advance(1, key)
            losses[name] = tuple(found)
    return losses


def _anchor_plans(
    space: ElementSpace, scores: Mapping[str, np.ndarray], empty: Plan, channels: bool
) -> dict[str, list[tuple[str, Callable[[], Plan]]]]:
    """What makes the plans of every candidate, each with a name of its own; two alike where few units are left."""
    graph = space.graph

    def elements(name: str, anchor: int) -> Plan:
        counts = {name: space.positions(name, anchor)}
        return empty.model_copy(update={"elements": patterns(graph.model, counts, scope=space.scope)})

    def units(name: str, anchor: int) -> Plan:
        return graph.plan({name: keep(scores[name], anchor)}, ())

    def block(name: str) -> Plan:
        return graph.plan({}, (name,))

    plans: dict[str, list[tuple[str, Callable[[], Plan]]]] = {}
    for group, anchors in zip(space.spec.groups, space.anchors(), strict=True):
        if group.name.endswith(SUFFIX):
            make, name = elements, group.name.removesuffix(SUFFIX)
        elif channels:
            make, name = units, group.name
        else:
            continue
        plans[group.name] = [(f"{group.name}={anchor}", partial(make, name, anchor)) for anchor in anchors]
    return plans | {each.name: [(each.name, partial(block, each.name))] for each in graph.spec.blocks}
