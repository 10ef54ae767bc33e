"""The latency model of a traced network on a named target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from secateurs.progress import Progress, silent
from secateurs.registry import names

if TYPE_CHECKING:
    from secateurs.latency.model import LatencyModel
    from secateurs.latency.store import Store
    from secateurs.latency.targets._base import Target
    from secateurs.structure import Graph

DEFAULT_TARGET = "onnxruntime-cpu"


def open_target(name: str | Target) -> Target:
    """The target of that name, ready to use.

    Raises:
        PlanError: unknown name.
        TargetUnavailableError: its runtime is not installed or its device is not reachable.
    """
    from secateurs.latency import targets

    return targets.open_target(name)


def target_names() -> list[str]:
    """Every registered target."""
    return names("targets")


def profile(
    graph: Graph,
    target: str | Target = DEFAULT_TARGET,
    *,
    threads: int = 1,
    batch: int = 1,
    store: Store | str | Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
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

    Raises:
        TargetError: the runtime is missing, failed, or the machine is too disturbed to measure.
        ExportError: the network cannot be exported for the target.
    """
    from secateurs.export.artifacts import variants
    from secateurs.latency import model
    from secateurs.latency.store import Store

    opened = open_target(target)
    with progress.task("export for the latency model"):
        built = variants(opened.artifact, graph, batch)
    kept = store if isinstance(store, Store) else Store(store, progress=progress)
    return model.profile(
        graph.spec,
        built,
        opened,
        threads=threads,
        store=kept,
        seed=seed,
        progress=progress,
    )
