"""The door to a file that a target runs: how it is written, and how variants of it are made, by its format."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import nn

from secateurs import registry
from secateurs.errors import ExportError

if TYPE_CHECKING:
    from secateurs.export.onnx import ExportReport
    from secateurs.export.quantised import Quantising

MOST_KEPT = 256 << 20
"""Bytes of a dense file whose variants are kept with their graph."""


class _Built(Protocol):
    dense_bytes: bytes


Built = TypeVar("Built", bound=_Built)


def formats() -> list[str]:
    """Every format that can be written; also the files' suffixes."""
    return [name for name in registry.names("exporters") if ":" not in name]


def precisions(artifact: str) -> list[str]:
    """Precisions that a format can be written in, beside float: behind a colon, ``onnx:int8``."""
    names = (name.partition(":") for name in registry.names("exporters"))
    return [precision for name, _, precision in names if name == artifact and precision]


def calibrated(precision: str) -> bool:
    """Whether a file of this precision holds quantised numbers, whose ranges come from samples."""
    return precision.startswith("int8")


def export_artifact(
    artifact: str,
    module: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    *,
    batch: int | None = 1,
    quantising: Quantising | None = None,
) -> ExportReport:
    """Write ``module`` in the format ``artifact`` (``onnx``, ``pt2``, ``pte`` or ``xml``), compared with PyTorch.

    ``quantising``: what the file is quantised by, where the format is followed by such a precision (``onnx:int8``).

    Raises:
        ExportError: unknown format, or the export fails or differs.
    """
    given = {} if quantising is None else {"quantising": quantising}
    report: ExportReport = _known("exporters", artifact)(module, example, path, batch=batch, **given)
    return report


def variants(artifact: str, graph: Any, batch: int = 1) -> Any:
    """What builds the traced network's files at any widths, in the format ``artifact``: as
    :class:`secateurs.latency.collect.Variants` says.

    Raises:
        ExportError: unknown format, or the network cannot be exported.
    """
    return _known("variants", artifact)(graph, batch)


def kept(graph: Any, make: Callable[[Any, int], Built], batch: int) -> Built:
    """``make(graph, batch)``, the same for the same graph: a run asks for it at every measurement.

    For files of random weights, which training in between does not change. Those over ``MOST_KEPT`` are made anew.
    """
    if (make, batch) in graph.made:
        found: Built = graph.made[make, batch]
        return found
    made = make(graph, batch)
    if len(made.dense_bytes) <= MOST_KEPT:
        graph.made[make, batch] = made
    return made


def _known(kind: str, artifact: str) -> Any:
    known = registry.names(kind)
    if artifact not in known:
        raise ExportError(
            f"No exporter writes {artifact!r} files. Known are {', '.join(known)}; choose another target."
        )
    return registry.load(kind, artifact)
