"""Sizes of the files that a target runs, written for some networks, so that the size of every other follows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from secateurs.export.artifacts import variants
from secateurs.latency.targets import open_target
from secateurs.progress import Progress, silent
from secateurs.resources import Seen

if TYPE_CHECKING:
    from secateurs.latency.targets import Target
    from secateurs.network import NetworkSpec
    from secateurs.search.legal import Legal
    from secateurs.structure import Graph

BETWEEN = 4
"""Networks between the dense and the smallest one whose files are weighed."""


def files_seen(graph: Graph, legal: Legal, target: str | Target, batch: int, progress: Progress) -> list[Seen]:
    """Bytes of the target's files of the dense network, the smallest legal one and some between, in this order.

    Raises:
        ExportError: the network cannot be exported for the target.
    """
    spec, generator = graph.spec, np.random.default_rng(0)
    least, removed = smallest(spec, legal)
    between = [(generator.integers(least, spec.dense_widths + 1), frozenset[int]()) for _ in range(BETWEEN)]
    networks = [(spec.dense_widths, frozenset[int]()), (least, removed), *between]
    sizes = written_sizes(graph, networks, target, batch=batch, progress=progress)
    return [Seen(*one, float(size)) for one, size in zip(networks, sizes, strict=True)]


def smallest(spec: NetworkSpec, legal: Legal) -> tuple[np.ndarray, frozenset[int]]:
    """Widths [groups] and removed blocks of the smallest legal network."""
    widths = np.maximum(spec.min_widths, [legal.fewest(group.units) for group in spec.groups])
    return widths, frozenset(range(len(spec.blocks))) if legal.blocks else frozenset()


def written_sizes(
    graph: Graph,
    networks: Sequence[tuple[np.ndarray, Collection[int]]],
    target: str | Target,
    *,
    batch: int = 1,
    progress: Progress = silent,
) -> list[int]:
    """Bytes of the file that the target runs, of each network (widths, removed blocks).

    Raises:
        ExportError: the network cannot be exported for the target.
    """
    with progress.task("export for measuring"):
        built = variants(open_target(target).exporter, graph, batch)
    return [len(built.build(np.asarray(widths), frozenset(gone))) for widths, gone in networks]
