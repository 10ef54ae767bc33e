"""The latency model of a traced network on a named target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from secateurs.errors import checked
from secateurs.latency.targets import DEFAULT_TARGET, check_threads, open_target
from secateurs.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np

    from secateurs.latency.model import LatencyModel
    from secateurs.latency.store import Store
    from secateurs.latency.targets._base import Target
    from secateurs.structure import Graph


def profile(
    graph: Graph,
    target: str | Target = DEFAULT_TARGET,
    *,
    threads: int = 1,
    batch: int = 1,
    store: Store | str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
    again: bool = False,
) -> LatencyModel:
    """A latency model of the network on the target, from whole-network runs at many widths.

    Args:
        graph: the traced network.
        target: a registered name or an own target object.
        threads: of the runtime.
        batch: batch size that is measured.
        store: where measurements are kept (None: the user's own store); nothing is measured twice.
        seed: of the widths that are measured.
        progress: where to report.
        again: forget what was measured of this network on this target before, as when the machine was busy.

    Raises:
        TargetError: the runtime is missing, failed, or the machine is too disturbed to measure.
        ExportError: the network cannot be exported for the target.
    """
    from secateurs.export.artifacts import variants
    from secateurs.latency import model
    from secateurs.latency.store import Store
    from secateurs.structure import Graph
    from secateurs.structure.untouched import as_found

    checked(Graph, graph, "profile(graph=)", "Give what sc.trace returned")
    checked(Annotated[int, Field(ge=1)], batch, "profile(batch=)", "Give a number of samples")
    checked(Annotated[int, Field(ge=0, lt=2**63)], seed, "profile(seed=)", "Give a whole number from 0 on")
    checked(object if isinstance(store, Store) else str | Path | None, store, "profile(store=)", "Give a file")
    opened = open_target(target)
    check_threads(target, threads)
    kept = store if isinstance(store, Store) else Store(store, progress=progress)
    with as_found(graph.model):
        with progress.task("export for the latency model"):
            built = variants(opened.exporter, graph, batch)
        told = opened.formula(graph.spec, built.dense_bytes, threads=threads, batch=batch)
        if told is not None:
            return told.latency_model()
        return model.profile(
            graph.spec,
            built,
            opened,
            threads=threads,
            store=kept,
            seed=seed,
            progress=progress,
            propose=lambda costs, number: typical_plans(graph, costs, seed, number),
            again=again,
        )


def typical_plans(
    graph: Graph, costs: LatencyModel, seed: int, number: int, count: int = 12
) -> list[tuple[np.ndarray, frozenset[int]]]:
    """``count`` plans (widths, removed blocks) of the exact solver for random scores and budgets of 35 to 85 %.

    In every second one some groups are worth much more than others, as with criteria that read the network's weights.
    """
    import numpy as np

    from secateurs.errors import InfeasibleBudgetError
    from secateurs.search.exact import Effort
    from secateurs.search.knapsack import Knapsack
    from secateurs.search.options import legal_widths, right_ends
    from secateurs.search.problem import Constraint, Problem
    from secateurs.search.values import curve

    spec, model = graph.spec, costs.cost_model()
    if not spec.groups:
        return []
    dense_ms = float(model.evaluate(spec.dense_widths))
    options = right_ends(spec, legal_widths(spec), [model])
    rng = np.random.default_rng([seed, 2000 + number])
    strategy = Knapsack(Effort(gap=1e-3, seconds=3.0))
    plans = []
    for index in range(count):
        scale = np.exp(rng.normal(0.0, index % 2, len(spec.groups)))
        values = tuple(curve(rng.random(group.units) * own) for group, own in zip(spec.groups, scale, strict=True))
        limit = float(rng.uniform(0.35, 0.85)) * dense_ms
        problem = Problem(
            spec,
            options,
            values,
            (Constraint("latency", model, limit),),
            removable=frozenset(range(len(spec.blocks))),
        )
        try:
            solution = strategy.solve(problem)
        except InfeasibleBudgetError:
            continue
        plans.append((solution.widths, frozenset(solution.removed)))
    return plans
