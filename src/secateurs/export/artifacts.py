"""The door to a file that a target runs: how it is written, and how variants of it are made, by its format."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch import nn

from secateurs import registry
from secateurs.errors import ExportError

if TYPE_CHECKING:
    from secateurs.export.onnx import ExportReport
    from secateurs.export.quantised import Quantising


def formats() -> list[str]:
    """Every format that can be written; also the files' suffixes."""
    return [name for name in registry.names("exporters") if ":" not in name]


def precisions(artifact: str) -> list[str]:
    """Precisions of quantised files that a format can be written in, beside float: behind a colon, ``onnx:int8``."""
    names = (name.partition(":") for name in registry.names("exporters"))
    return [precision for name, _, precision in names if name == artifact and precision]


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

    ``quantising``: what the file is quantised by, where the format is followed by a precision (``onnx:int8``).

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


def _known(kind: str, artifact: str) -> Any:
    known = registry.names(kind)
    if artifact not in known:
        raise ExportError(
            f"No exporter writes {artifact!r} files. Known are {', '.join(known)}; choose another target."
        )
    return registry.load(kind, artifact)
