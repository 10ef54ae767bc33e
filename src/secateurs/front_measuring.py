"""Latencies of the networks of a front, from networks that were run and not from the latency model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from secateurs.export.artifacts import variants
from secateurs.latency.collect import Collector
from secateurs.latency.design import Sample
from secateurs.latency.store import Store
from secateurs.profiling import open_target
from secateurs.progress import Progress, silent

if TYPE_CHECKING:
    from secateurs.latency.model import LatencyModel
    from secateurs.structure import Graph


def measured_latencies(
    graph: Graph,
    costs: LatencyModel,
    networks: Sequence[tuple[np.ndarray, Collection[int]]],
    target: str,
    *,
    threads: int = 1,
    batch: int = 1,
    store: Store | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Measured latencies in ms, float64 [n], of ``networks`` (widths, removed blocks), comparable with the model's.

    All are run round-robin with the dense network beside them, whose drift is taken out. Files are made by slicing the
    exported dense one, so that a whole front takes about as long as one export.

    Args:
        graph: the traced network.
        costs: its latency model on the target, which gives the pace of the machine that figures are converted to.
        networks: legal ones.
        target: a registered name.
        threads: of the runtime.
        batch: batch size that is measured.
        store: where measurements are kept; nothing is measured twice.
        progress: where to report.

    Raises:
        TargetError: the runtime failed, or the machine is too disturbed to measure.
        ExportError: the network cannot be exported for the target.
    """
    opened = open_target(target)
    with progress.task("export for measuring"):
        built = variants(opened.artifact, graph, batch)
    collector = Collector(graph.spec, built, opened, threads=threads, store=store, progress=progress, profiled=False)
    samples = [Sample(tuple(np.asarray(widths).tolist()), frozenset(gone)) for widths, gone in networks]
    with progress.task("measure the front", len(samples)) as task:
        seen = collector.measure(samples, task)
    return costs.measured_ms([entry.total_ms for entry in seen], [entry.anchor_ms for entry in seen])
