"""Writes a network in OpenVINO's format: ``NAME.xml`` with ``NAME.bin`` beside it, converted from ONNX."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from secateurs.errors import ExportError, why
from secateurs.export.onnx import TOLERANCE, ExportReport, max_rel_error, to_model
from secateurs.files import write_atomic


def run_openvino(path: Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of the file at ``path`` for ``inputs`` in the order of its inputs, by OpenVINO on one thread in f32."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.compile_model(str(path), "CPU", settings)
    return [np.asarray(output) for output in compiled(inputs).values()]


def export_openvino(
    module: nn.Module, example: Any, path: str | os.PathLike[str], *, batch: int | None = 1
) -> ExportReport:
    """Write ``module`` to ``path`` (.xml) and its weights beside it (.bin), compared with PyTorch.

    Args:
        module: network, left in the mode it was in.
        example: inputs in any of the forms that ``trace`` takes.
        path: file to write; the weights appear first, each file whole or not at all.
        batch: fixed batch size; None leaves the batch open.

    Raises:
        ExportError: OpenVINO is not installed or refuses the network, or the file computes something else.
    """
    try:
        import openvino
    except ImportError as missing:
        raise ExportError(
            f"{Path(path).name} needs OpenVINO, which is not installed. Install secateurs[openvino], or export ONNX."
        ) from missing
    path = Path(path)
    model = to_model(module, example, batch=batch)
    with tempfile.TemporaryDirectory(prefix="secateurs-openvino-") as folder:
        source, draft = Path(folder) / "network.onnx", Path(folder) / "network.xml"
        source.write_bytes(model.SerializeToString())
        try:
            openvino.save_model(openvino.convert_model(str(source)), str(draft), compress_to_fp16=False)
            error = max_rel_error(module, example, batch or 3, draft, run_openvino)
        except RuntimeError as failure:
            raise ExportError(
                f"OpenVINO refuses the network: {why(failure)}. Replace what the message names, or export ONNX."
            ) from failure
        if not error <= TOLERANCE:
            raise ExportError(
                f"The exported {path.name} differs from PyTorch by {error:.2g} of the largest output "
                f"(limit {TOLERANCE:g}). Nothing was written; choose another format."
            )
        weights, graph = draft.with_suffix(".bin").read_bytes(), draft.read_bytes()
    write_atomic(path.with_suffix(".bin"), weights)
    write_atomic(path, graph)
    return ExportReport(max_rel_error=error, size_bytes=len(weights) + len(graph))
