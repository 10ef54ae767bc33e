"""What the dense network and the smallest legal one take, measured before the search begins."""

from __future__ import annotations

import numpy as np
from torch import nn

from secateurs.budgets import RESOURCES
from secateurs.errors import PlanError
from secateurs.jobs.settings import Settings
from secateurs.latency.store import Store
from secateurs.measure.bench import Bench
from secateurs.network import NetworkSpec
from secateurs.planning.closed_loop import untold
from secateurs.report import wording
from secateurs.resources import Seen
from secateurs.search.legal import Legal
from secateurs.structure import Graph, apply


def dense_figures(
    settings: Settings, spec: NetworkSpec, bench: Bench, known: dict[str, float], float_ratio: float = 1.0
) -> dict[str, float]:
    """What the dense network takes of every limited resource, in its unit.

    ``known``: what need not be measured; ``float_ratio``: latency of the dense network in float / in the target's
    precision.

    Raises:
        PlanError: a budget is not below it.
        TargetError: the target does not tell a limited resource.
    """
    budgets = {budget.resource: budget for budget in settings.budgets}
    found = {**known, "macs": float(spec.macs(spec.dense_widths))}
    # A latency in ms is about now: the latency model's dense figure may be from another day.
    if "memory" in budgets or ("latency" in budgets and budgets["latency"].absolute):
        now = bench.measure_dense()
        found |= {"latency": now.latency_ms, "memory": float(now.memory_bytes or 0)}
    for name, budget in budgets.items():
        what, dense = RESOURCES[name], found[name]
        if dense <= 0:
            raise untold(name)
        if budget.ratio(dense, float_ratio) >= 1:
            raise PlanError(
                f"{what.words.capitalize()} budget {budget} is not below what the dense network takes, "
                f"{wording.amount(dense, what.unit)}: there is nothing to prune. Give a lower {what.option}."
            )
    return {name: found[name] for name in budgets}


def memory_seen(module: nn.Module, graph: Graph, legal: Legal, bench: Bench, store: Store, dense: float) -> list[Seen]:
    """Memory of the dense network (given) and of the smallest legal one (measured), for the memory model.

    Raises:
        TargetError: the target does not tell it.
    """
    spec = graph.spec
    widths, removed = smallest(spec, legal)
    inside = {group for block in removed for group in spec.blocks[block].groups}
    kept = {group.name: tuple(range(widths[i])) for i, group in enumerate(spec.groups) if i not in inside}
    plan = graph.plan(kept, [spec.blocks[block].name for block in sorted(removed)], {})
    small = apply(module, plan, (graph.args, graph.kwargs), check=False)
    measured = bench.measure(small, store, f"{spec.fingerprint}/{widths.tolist()}/{sorted(removed)}")
    if measured.memory_bytes is None:
        raise untold("memory")
    return [Seen(spec.dense_widths, frozenset(), dense), Seen(widths, removed, float(measured.memory_bytes))]


def smallest(spec: NetworkSpec, legal: Legal) -> tuple[np.ndarray, frozenset[int]]:
    """Widths [groups] and removed blocks of the smallest legal network."""
    widths = np.maximum(spec.min_widths, [legal.fewest(group.units) for group in spec.groups])
    return widths, frozenset(range(len(spec.blocks))) if legal.blocks else frozenset()
