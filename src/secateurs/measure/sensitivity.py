"""Latency sensitivity measured end to end: one group cut at a time, whole networks run on the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from secateurs.latency.targets import DEFAULT_TARGET
from secateurs.progress import Progress, silent

SAMPLED_GROUPS = 5
"""Groups whose sensitivity a run measures, nine networks each."""

if TYPE_CHECKING:
    from secateurs.latency.store import Store
    from secateurs.latency.targets._base import Target
    from secateurs.search.lap.sensitivity import Sensitivity
    from secateurs.structure import Graph


def measured_sensitivity(
    graph: Graph,
    target: str | Target = DEFAULT_TARGET,
    groups: Sequence[int] | None = None,
    *,
    threads: int = 1,
    batch: int = 1,
    store: Store | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """The curves S_g(ρ) of all or some groups, from networks that were cut and run, not from the latency model.

    Every network is physically narrower; all are run round-robin with the dense one beside them, whose drift is taken
    out. Compare with :func:`secateurs.search.lap.sensitivity.modelled` by
    :func:`~secateurs.search.lap.sensitivity.agreement`.

    Args:
        graph: the traced network.
        target: a registered name or an own target object.
        groups: indices of the groups, None for all (nine networks each).
        threads: of the runtime.
        batch: batch size that is measured.
        store: where measurements are kept; nothing is measured twice.
        progress: where to report.

    Raises:
        TargetError: the runtime is missing, failed, or the machine is too disturbed to measure.
        ExportError: the network cannot be exported for the target.
    """
    from secateurs.measure.networks import run_networks
    from secateurs.search.lap.sensitivity import sensitivity

    def latencies(widths: np.ndarray) -> np.ndarray:
        networks = [(row, ()) for row in widths]
        found = run_networks(graph, networks, target, threads=threads, batch=batch, store=store, progress=progress)
        # Relative to the dense network of the same minute.
        return np.array([seen.total_ms / seen.anchor_ms for seen in found])

    return sensitivity(graph.spec, latencies, groups)


def with_measured_sample(
    details: Mapping[str, Any],
    graph: Graph,
    target: Target,
    threads: int,
    batch: int,
    store: Store | None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """A solution's details for the report; where a search used sensitivities, a few of them as measured, too.

    ``measured`` holds ``groups``, names from the most to the least sensitive; ``saved``, their curves; ``agreement``,
    Spearman's rank correlation of measured and modelled, None for fewer than three groups.

    Args:
        details: of a solution; empty ones, and those without a summary, give an empty result; nothing is measured
            where the sensitivities are of another cost than latency.
        graph: the traced network.
        target: where to measure.
        threads: of the runtime.
        batch: batch size that is measured.
        store: where measurements are kept; nothing is measured twice.
        progress: where to report.

    Raises:
        TargetError: the runtime failed, or the machine is too disturbed to measure.
    """
    if "summary" not in details or "sensitivity" not in details or details["unit"] != "ms":
        return dict(details) if "summary" in details else {}
    from secateurs.search.lap.sensitivity import Sensitivity, agreement, spread_sample

    places, curves = tuple(graph.group_index(name) for name in details["groups"]), details["sensitivity"]
    units = graph.spec.dense_widths[list(places)]
    expected = Sensitivity(places, units, np.array(curves["widths"]), np.array(curves["saved"], dtype=np.float64))
    chosen = spread_sample(expected, SAMPLED_GROUPS)
    found = measured_sensitivity(graph, target, chosen, threads=threads, batch=batch, store=store, progress=progress)
    measured = {
        "groups": [graph.groups[group].name for group in chosen],
        "saved": found.saved.tolist(),
        "agreement": agreement(expected, found) if len(chosen) >= 3 else None,
    }
    return {**details, "measured": measured}
