"""Latencies from networks that were cut and run, not from the latency model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from secateurs.export.artifacts import variants
from secateurs.latency.collect import Collector, Observation
from secateurs.latency.design import Sample
from secateurs.latency.store import Store
from secateurs.profiling import open_target
from secateurs.progress import Progress, silent

if TYPE_CHECKING:
    from secateurs.latency.model import LatencyModel
    from secateurs.latency.targets._base import Target
    from secateurs.structure import Graph


def run_networks(
    graph: Graph,
    networks: Sequence[tuple[np.ndarray, Collection[int]]],
    target: str | Target,
    *,
    threads: int = 1,
    batch: int = 1,
    store: Store | None = None,
    progress: Progress = silent,
) -> list[Observation]:
    """What was measured of every network (widths, removed blocks), whole and unprofiled, in their order.

    All are run round-robin with the dense network beside them. Files are made by slicing the exported dense one, so
    that many take about as long as one export. Arguments and errors are those of :func:`measured_latencies`.
    """
    opened = open_target(target)
    with progress.task("export for measuring"):
        built = variants(opened.artifact, graph, batch)
    collector = Collector(graph.spec, built, opened, threads=threads, store=store, progress=progress, profiled=False)
    samples = [Sample(tuple(np.asarray(widths).tolist()), frozenset(gone)) for widths, gone in networks]
    with progress.task("measure networks", len(samples)) as task:
        return collector.measure(samples, task)


def measured_latencies(
    graph: Graph,
    costs: LatencyModel,
    networks: Sequence[tuple[np.ndarray, Collection[int]]],
    target: str | Target,
    *,
    threads: int = 1,
    batch: int = 1,
    store: Store | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Measured latencies in ms, float64 [n], of ``networks`` (widths, removed blocks), comparable with the model's.

    The drift of the dense network that runs beside them is taken out.

    Args:
        graph: the traced network.
        costs: its latency model on the target, which gives the pace of the machine that figures are converted to.
        networks: legal ones.
        target: a registered name or an own target object.
        threads: of the runtime.
        batch: batch size that is measured.
        store: where measurements are kept; nothing is measured twice.
        progress: where to report.

    Raises:
        TargetError: the runtime failed, or the machine is too disturbed to measure.
        ExportError: the network cannot be exported for the target.
    """
    seen = run_networks(graph, networks, target, threads=threads, batch=batch, store=store, progress=progress)
    return costs.measured_ms([entry.total_ms for entry in seen], [entry.anchor_ms for entry in seen])
