"""Writes a network in OpenVINO's format: ``NAME.xml`` with ``NAME.bin`` beside it, converted from ONNX."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from secateurs.errors import ExportError, why
from secateurs.export.onnx import TOLERANCE, ExportReport, max_rel_error, to_model
from secateurs.export.quantised import Quantising, export_onnx_int8
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
    path = _possible(path)
    with tempfile.TemporaryDirectory(prefix="secateurs-openvino-") as folder:
        source = Path(folder) / "network.onnx"
        source.write_bytes(to_model(module, example, batch=batch).SerializeToString())
        draft = _converted(source)
        error = max_rel_error(module, example, batch or 3, draft, run_openvino)
        if not error <= TOLERANCE:
            raise ExportError(
                f"The exported {path.name} differs from PyTorch by {error:.2g} of the largest output "
                f"(limit {TOLERANCE:g}). Nothing was written; choose another format."
            )
        return ExportReport(max_rel_error=error, size_bytes=_written(draft, path))


def export_openvino_int8(
    module: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    *,
    batch: int | None = 1,
    quantising: Quantising | None = None,
) -> ExportReport:
    """The same with int8 operators: what :func:`secateurs.export.quantised.export_onnx_int8` writes, converted.

    Raises:
        ExportError: OpenVINO is not installed or refuses the network; as of that function.
    """
    path = _possible(path)
    with tempfile.TemporaryDirectory(prefix="secateurs-openvino-") as folder:
        source = Path(folder) / "network.onnx"
        report = export_onnx_int8(module, example, source, batch=batch, quantising=quantising)
        return replace(report, size_bytes=_written(_converted(source), path))


def _possible(path: str | os.PathLike[str]) -> Path:
    """``path``, where OpenVINO is installed.

    Raises:
        ExportError: it is not.
    """
    if importlib.util.find_spec("openvino") is None:
        raise ExportError(
            f"{Path(path).name} needs OpenVINO, which is not installed. Install secateurs[openvino], or export ONNX."
        )
    return Path(path)


def _converted(source: Path) -> Path:
    """The ONNX file at ``source`` as one of OpenVINO's beside it.

    Raises:
        ExportError: OpenVINO refuses it.
    """
    import openvino

    draft = source.with_suffix(".xml")
    try:
        openvino.save_model(openvino.convert_model(str(source)), str(draft), compress_to_fp16=False)
    except RuntimeError as failure:
        raise ExportError(
            f"OpenVINO refuses the network: {why(failure)}. Replace what the message names, or export ONNX."
        ) from failure
    return draft


def _written(draft: Path, path: Path) -> int:
    """Write what ``draft`` and its weights hold to ``path`` and beside it; bytes of both."""
    weights, graph = draft.with_suffix(".bin").read_bytes(), draft.read_bytes()
    write_atomic(path.with_suffix(".bin"), weights)
    write_atomic(path, graph)
    return len(weights) + len(graph)
