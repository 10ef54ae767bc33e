"""Latency and memory of networks that were cut and run, not of their models."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from secateurs.export.artifacts import variants
from secateurs.latency.collect import Collector, Observation
from secateurs.latency.design import Sample
from secateurs.latency.store import Store
from secateurs.latency.targets import open_target
from secateurs.latency.timing import Protocol, compare
from secateurs.progress import Progress, silent
from secateurs.provenance import store_key

if TYPE_CHECKING:
    from secateurs.latency.model import LatencyModel
    from secateurs.latency.targets._base import Target
    from secateurs.structure import Graph

BRIEF, AT_ONCE = Protocol(turns=4, precision=10.0, refuse=10.0, extensions=0), 6
"""Memory needs some runs, but no precise times; processes side by side."""


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
        built = variants(opened.exporter, graph, batch)
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


def measured_memory(
    graph: Graph,
    networks: Sequence[tuple[np.ndarray, Collection[int]]],
    target: str | Target,
    *,
    threads: int = 1,
    batch: int = 1,
    store: Store | None = None,
    progress: Progress = silent,
) -> list[int | None]:
    """Peak bytes that each network (widths, removed blocks) adds to a runtime process of its own.

    None where the target does not tell. Arguments and errors are those of :func:`measured_latencies`; with a ``store``
    the same network has the same figure ever after.
    """
    opened = open_target(target)
    fingerprint = opened.fingerprint(threads)
    names = [
        store_key("memory", f"b{batch}", graph.spec.fingerprint, np.asarray(widths).tolist(), sorted(gone))
        for widths, gone in networks
    ]
    kept = {} if store is None else {name: row for name in names if (row := store.get(fingerprint, name)) is not None}
    found: dict[str, int | None] = {name: row["bytes"] for name, row in kept.items()}
    due = {name: network for name, network in zip(names, networks, strict=True) if name not in found}
    if due:
        with progress.task("export for measuring"):
            built = variants(opened.exporter, graph, batch)
    with progress.task("measure memory", len(due)) as task:
        for start in range(0, len(due), AT_ONCE):
            files: dict[str, Path | str | bytes] = {
                name: built.build(np.asarray(widths), frozenset(gone))
                for name, (widths, gone) in list(due.items())[start : start + AT_ONCE]
            }
            seen = compare(opened, files, threads=threads, batch=batch, protocol=BRIEF, progress=progress)
            found |= {name: seen[name].memory_bytes for name in files}
            if store is not None:
                store.put(fingerprint, {name: {"bytes": found[name]} for name in files})
            task.advance(len(files))
    return [found[name] for name in names]
