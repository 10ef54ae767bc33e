"""Latency sensitivity measured end to end: one group cut at a time, whole networks run on the target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from secateurs.profiling import DEFAULT_TARGET, open_target
from secateurs.progress import Progress, silent

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
    from secateurs.export.artifacts import variants
    from secateurs.latency.collect import Collector
    from secateurs.latency.design import Sample
    from secateurs.search.lap.sensitivity import sensitivity

    opened = open_target(target)
    with progress.task("export for the sensitivity"):
        built = variants(opened.artifact, graph, batch)
    collector = Collector(graph.spec, built, opened, threads=threads, store=store, progress=progress)

    def latencies(widths: np.ndarray) -> np.ndarray:
        samples = [Sample(tuple(row.tolist())) for row in widths]
        with progress.task("sensitivity", len(samples)) as task:
            found = collector.measure(samples, task)
        # Relative to the dense network of the same minute.
        return np.array([seen.total_ms / seen.anchor_ms for seen in found])

    return sensitivity(graph.spec, latencies, groups)
