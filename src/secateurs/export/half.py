"""ONNX files in half precision, for runtimes that compute in the precision of the file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from secateurs.errors import ExportError, why
from secateurs.export.onnx import ExportReport, export_onnx, max_rel_error
from secateurs.export.variants import OnnxVariants
from secateurs.files import write_atomic

_TOLERANCE = 0.05
"""Rounding to 11 bits in every layer of a deep network; what is wrong is much further off."""


def export_onnx_half(
    module: nn.Module, example: Any, path: str | os.PathLike[str], *, batch: int | None = 1
) -> ExportReport:
    """Write ``module`` to ``path`` as an ONNX file in half precision; inputs and outputs stay in single precision.

    The file is run on this machine's processor and compared with PyTorch.

    Args:
        module: network, left in the mode it was in.
        example: inputs in any of the forms that ``trace`` takes.
        path: file to write; it appears whole or not at all.
        batch: fixed batch size; None leaves the batch open.

    Raises:
        ExportError: as of :func:`secateurs.export.onnx.export_onnx`; a number does not fit into half precision.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="secateurs-half-") as folder:
        draft = Path(folder) / "network.onnx"
        export_onnx(module, example, draft, batch=batch)
        content = halved(onnx.load(draft)).SerializeToString()
        draft.write_bytes(content)
        error = max_rel_error(module, example, batch or 3, draft)
    if not error <= _TOLERANCE:
        raise ExportError(
            f"In half precision {path.name} differs from PyTorch by {error:.2g} of the largest output "
            f"(limit {_TOLERANCE:g}). Nothing was written; choose the float target."
        )
    write_atomic(path, content)
    return ExportReport(max_rel_error=error, size_bytes=len(content))


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with weights and activations in half precision, by ONNX Runtime's own converter.

    Raises:
        ExportError: it refuses the file.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    try:
        made: onnx.ModelProto = convert_float_to_float16(copied, keep_io_types=True)
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot write the network in half precision: {why(error)}. Choose the float target."
        ) from error
    return made


class HalfVariants(OnnxVariants):
    """Builds the half-precision ONNX file of a traced network at any widths; see its base class."""

    def __init__(self, graph: Any, batch: int = 1) -> None:
        super().__init__(graph, batch)
        self.dense_bytes = _half(self.dense_bytes)

    def build(
        self, widths: np.ndarray, removed: frozenset[int] = frozenset(), rng: np.random.Generator | None = None
    ) -> bytes:
        """The file with ``widths[g]`` units in group ``g`` and without the blocks ``removed``."""
        return _half(super().build(widths, removed, rng))


def _half(content: bytes) -> bytes:
    return halved(onnx.load_model_from_string(content)).SerializeToString()
