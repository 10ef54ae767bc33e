"""Criterion ``measured``: what a width is worth is measured on cut and refitted networks, and tempered by ``fisher``.

Card. Formula: s = √(Δ f), f the Fisher scores of the group's units in ascending order, Δ the increments of L_g(w) =
KL(dense ‖ network with only group g cut to w and refitted by least squares), measured on calibration images at three
widths (without a fifth, 45 % and 70 % of the units) and, for the groups of a block, with the block removed; between
these points Δ is divided in proportion to f and made non-decreasing (isotonic regression). s is dealt out in the order
in which ``obs`` removes units (where no reader can be unfolded: of Fisher). Source: SPDY (arXiv 2201.13096) for the
need of values that compare across groups, here measured instead of searched for; the refit is docs/methods.md, "Least
squares repair". Why: Fisher information and its relatives know neither finite cuts nor repair, and so overrate what
least squares makes up for: in MobileNetV2 the expansions, by ten times, against the channels between blocks. Measured
cuts of one group alone underrate what adds up: several blocks that can each go alone cannot all go, and Fisher is wary
of blocks. The errors of the two are unlike, and their geometric mean beats either (docs/accuracy.md). Cost:
``fisher_obs``, and three cut and refitted networks per group, one per block, on some dozens of images: minutes. When to
use: with least-squares repair after the cut; the default. When not: without calibration data.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from secateurs.importance import fisher, fisher_obs
from secateurs.importance.context import Context, needs
from secateurs.importance.output_change import Answers, images_for
from secateurs.search.rows import MemoryRows
from secateurs.search.values import order
from secateurs.structure.graph import Graph

GONE = (0.2, 0.45, 0.7)
"""Shares of a group's units without which the answers are measured."""
LEAST = 1e-9
"""What a cut costs at least."""
_REMEMBERED: WeakKeyDictionary[Graph, MemoryRows] = WeakKeyDictionary()
"""What was measured of a graph in this process: a plan for another budget measures nothing again."""


def work(graph: Graph, images: int | None = None) -> float:
    """Multiply-adds of the dense network on all images of all cuts: what measuring takes, up to the refits.

    ``images``: how many there are; None: as many as are looked at.
    """
    macs = graph.spec.macs(graph.spec.dense_widths)
    cuts = len(GONE) * len(graph.spec.groups) + len(graph.spec.blocks)
    wanted = images_for(graph.args, macs)
    return float(cuts * (wanted if images is None else min(images, wanted)) * macs)


@needs("norms", "moments", "images")
def score(graph: Graph, group: str, context: Context) -> np.ndarray:
    """Geometric means of measured and Fisher increments, float64 [units]."""
    answers = answers_in(graph, context)
    worth = fisher.score(graph, group, context)
    sequence = order(fisher_obs.score(graph, group, context))[::-1]  # the first to go comes first
    units = len(sequence)
    counts = sorted({int(units * share) for share in GONE} - {0})
    losses = [answers.change(graph.plan({group: tuple(sorted(sequence[count:].tolist()))}, ())) for count in counts]
    for block in graph.spec.blocks:
        members = [graph.spec.groups[member].name for member in block.groups]
        if group in members:
            counts.append(units)
            # the groups of a block share what the block is worth
            losses.append(answers.change(graph.plan({}, (block.name,))) / len(members))
    result = np.empty(units)
    rising = np.sort(worth)
    result[sequence] = np.sqrt(
        increments(rising, counts, losses) * np.maximum(rising, LEAST * rising.mean() + LEAST**2)
    )
    return result


def answers_in(graph: Graph, context: Context) -> Answers:
    """What measures networks on the context's images, the same for all groups.

    Raises:
        PlanError: there are none.
    """
    statistics = context.gathered("measured", "images")
    if "measured" not in statistics.kept:
        rows = statistics.kept.get("rows")
        if rows is None:
            rows = _REMEMBERED.setdefault(graph, MemoryRows())
        statistics.kept["measured"] = Answers(graph, statistics.images, rows, statistics.kept.get("task"))
    found: Answers = statistics.kept["measured"]
    return found


def increments(worth: np.ndarray, counts: Sequence[int], losses: Sequence[float]) -> np.ndarray:
    """What each further unit costs, in the order of removal, so that the first ``counts`` units cost ``losses``.

    Increasing, so that adding up the largest gives the curve back; between two counts in proportion to ``worth``
    (float64 [units], in the order of removal), behind the last at the rate before it. A later loss bounds an earlier
    one: what a whole block costs, most of it does not exceed.

    Returns:
        float64 [units], above 0.
    """
    units = len(worth)
    share = worth + max(1e-12, 1e-3 * float(worth.mean()))
    bounded = np.minimum.accumulate(np.asarray(losses, dtype=np.float64)[::-1])[::-1]
    result, before, loss, rate = np.zeros(units), 0, 0.0, 1.0
    for count, reached in zip(counts, bounded.tolist(), strict=True):
        rate = max(reached - loss, LEAST) / share[before:count].sum()
        result[before:count] = share[before:count] * rate
        before, loss = count, max(loss, reached)
    result[before:] = share[before:] * rate
    return _rising(result) * (1.0 + 1e-6 * np.arange(units))


def _rising(values: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence nearest in squares (pool adjacent violators)."""
    levels: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, count = value, 1
        while levels and levels[-1][0] > mean:
            lower, many = levels.pop()
            mean, count = (lower * many + mean * count) / (many + count), many + count
        levels.append((mean, count))
    return np.repeat([mean for mean, _ in levels], [count for _, count in levels])
