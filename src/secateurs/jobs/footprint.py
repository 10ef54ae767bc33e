"""What the dense network and the smallest legal one take, measured before the search begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from secateurs.budgets import RESOURCES, Budget
from secateurs.errors import PlanError
from secateurs.latency.store import Store
from secateurs.measure.bench import Bench
from secateurs.measure.sizes import files_seen, smallest
from secateurs.measure.targeted import Targeted
from secateurs.network import NetworkSpec
from secateurs.planning.closed_loop import untold
from secateurs.progress import Progress
from secateurs.report import wording
from secateurs.resources import Seen
from secateurs.search.legal import Legal
from secateurs.structure import Graph, apply


def dense_figures(targeted: Targeted, spec: NetworkSpec, known: Mapping[str, float]) -> dict[str, float]:
    """What the dense network takes of everything that is limited on a target, by the limits' names, in their units.

    ``known``: by resource, what need not be measured.

    Raises:
        TargetError: the target does not tell a limited resource.
    """
    budgets = {budget.resource: budget for budget in targeted.budgets}
    found = {**known, "file_size": targeted.dense_bytes, "macs": float(spec.macs(spec.dense_widths))}
    # A latency in ms is about now: the latency model's dense figure may be from another day.
    if "memory" in budgets or ("latency" in budgets and budgets["latency"].absolute):
        now = targeted.bench.measure_dense()
        found |= {"latency": now.latency_ms, "memory": float(now.memory_bytes or 0)}
    for name in budgets:
        if found[name] <= 0:
            raise untold(name)
    return {budget.name: found[budget.resource] for budget in targeted.budgets}


def check_binding(budgets: Sequence[Budget], limits: Mapping[str, float], dense: Mapping[str, float]) -> None:
    """Nothing, if there is something to prune: every budget is below what the dense network takes, or of the latencies
    on several targets one is.

    Args:
        budgets: all of a run.
        limits: by their names, as ratios to dense.
        dense: what the dense network takes, in the resources' units.

    Raises:
        PlanError: the dense network is within a budget.
    """
    timed = [limits[one.name] for one in budgets if one.resource == "latency"]
    for budget in budgets:
        if limits[budget.name] < 1 or (budget.resource == "latency" and min(timed) < 1):
            continue
        raise PlanError(
            f"{budget.limited.title} budget {budget} is not below what the dense network takes, "
            f"{wording.amount(dense[budget.name], RESOURCES[budget.resource].unit)}: there is nothing to prune. Give a "
            f"lower {budget.limited.option}."
        )


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


def limited_files(targets: Sequence[Targeted], graph: Graph, legal: Legal, progress: Progress) -> list[Seen]:
    """Sizes of some networks' files, for the size model, on the first target whose file is limited; else none."""
    for one in targets:
        if any(budget.resource == "file_size" for budget in one.budgets):
            return files_seen(graph, legal, one.bench.target, one.bench.batch, progress)
    return []
