"""One place that knows which file a target runs, how it is written, and how variants of it are made."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import nn

from secateurs.errors import ExportError
from secateurs.export.executorch import export_executorch
from secateurs.export.executorch_variants import ExecutorchVariants
from secateurs.export.onnx import ExportReport, export_onnx
from secateurs.export.open_vino import export_openvino
from secateurs.export.program import export_program
from secateurs.export.torch_variants import TorchVariants
from secateurs.export.variants import OnnxVariants

_EXPORTERS: dict[str, Callable[..., ExportReport]] = {
    "onnx": export_onnx,
    "pt2": export_program,
    "pte": export_executorch,
    "xml": export_openvino,
}
_VARIANTS: dict[str, Callable[[Any, int], Any]] = {
    "onnx": OnnxVariants,
    "pt2": TorchVariants,
    "pte": ExecutorchVariants,
}
Variants = OnnxVariants | TorchVariants | ExecutorchVariants


def formats() -> list[str]:
    """Every format that can be written; also the files' suffixes."""
    return list(_EXPORTERS)


def export_artifact(
    artifact: str, module: nn.Module, example: Any, path: str | os.PathLike[str], *, batch: int | None = 1
) -> ExportReport:
    """Write ``module`` in the format ``artifact`` (``onnx``, ``pt2``, ``pte`` or ``xml``), compared with PyTorch.

    Raises:
        ExportError: unknown format, or the export fails or differs.
    """
    return _known(_EXPORTERS, artifact)(module, example, path, batch=batch)


def variants(artifact: str, graph: Any, batch: int = 1) -> Variants:
    """What builds the traced network's files at any widths, in the format ``artifact``.

    Raises:
        ExportError: unknown format, or the network cannot be exported.
    """
    made: Variants = _known(_VARIANTS, artifact)(graph, batch)
    return made


def _known(table: dict[str, Any], artifact: str) -> Any:
    if artifact not in table:
        raise ExportError(
            f"No exporter writes {artifact!r} files. Known are {', '.join(table)}; choose another target."
        )
    return table[artifact]
