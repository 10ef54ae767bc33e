"""ONNX files in int8: every tensor's range from calibration samples, then operators between quantised values (QDQ).

ONNX Runtime's own quantizer does the work. What is decided here is what it leaves open: unsigned activations, so that
a ReLU is free; one scale per output channel of a weight; weights of seven bits where the processor would saturate; and
biases that take back what rounding the weights shifts.
TensorRT wants another form of the same: signed numbers around zero everywhere.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.errors import ExportError, why
from secateurs.export.bias_correction import corrected
from secateurs.export.onnx import ExportReport, export_onnx, with_batch
from secateurs.export.onnx_layers import WEIGHTED, OnnxLayers, layers_of, quantised_among
from secateurs.export.repeated import without_repeated
from secateurs.files import write_atomic

LEAST, ENOUGH = 16, 256
"""Calibration samples: fewer than the first tell too little of a tensor's range; more than the second tell no more."""
_SIGNED = {
    "ActivationSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
    "OpTypesToExcludeOutputQuantization": ["Conv", "ConvTranspose", "Gemm", "MatMul", "Add"],
}
"""What TensorRT reads: no zero points, float biases, weights that are quantised in the graph; and nothing between an
operator and the activation behind it, which it fuses."""
Ranges = Mapping[str, tuple[float, float]]
"""Least and greatest number of every float tensor of a file, by its name."""


@dataclass(frozen=True)
class Quantising:
    """What a file is quantised by.

    ``calibration``: batches of samples, each a pair (inputs, targets) or the inputs alone, of which the first ``most``
    samples count; ``seven_bits``: weights lie within ±63, for processors whose sums of two products of unsigned by
    signed 8-bit numbers overflow (x86 without VNNI); ``in_float``: layers, by module path, that are not quantised;
    ``beside``: where the float file goes that the quantised one is made of, where it is of the same format.
    """

    calibration: Iterable[Any]
    seven_bits: bool = False
    most: int = ENOUGH
    in_float: Collection[str] = ()
    beside: Path | None = None


def export_onnx_int8(
    module: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    *,
    batch: int | None = 1,
    quantising: Quantising | None = None,
    signed: bool = False,
) -> ExportReport:
    """Write ``module`` to ``path`` as an ONNX file of int8 operators; the file appears whole or not at all.

    The float file that it is made of was compared with PyTorch; how far that was apart is reported.

    Args:
        module: network, left in the mode it was in.
        example: inputs in any of the forms that ``trace`` takes.
        path: file to write.
        batch: fixed batch size.
        quantising: calibration samples, and how weights are held.
        signed: in the form that TensorRT reads.

    Raises:
        ExportError: as of :func:`secateurs.export.onnx.export_onnx`; no calibration samples; a tensor has no range; a
            layer that is to stay in float has no operator.
    """
    if quantising is None:
        raise ExportError("An int8 file needs calibration samples, from which ranges are read. Give data.")
    if batch is None:
        raise ExportError("An int8 file has a fixed batch size, and none was given. Give one.")
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="secateurs-int8-") as folder:
        draft = Path(folder) / "float.onnx"
        report = export_onnx(module, example, draft, batch=batch)
        model = onnx.load(draft)
        if quantising.beside is not None:
            write_atomic(quantising.beside, draft.read_bytes())
    layers = layers_of(model)
    _check_known(layers, quantising.in_float)
    calibration = quantising.calibration
    if isinstance(calibration, Iterator):  # it is read twice
        calibration = list(calibration)
    ranges = ranges_of(model, samples(calibration, batch, quantising.most))
    _check_varying(model, ranges)
    given: dict[str, Any] = {"seven_bits": quantising.seven_bits, "signed": signed}
    given["in_float"] = layers.nodes(quantising.in_float)
    made = quantised(model, ranges, **given)
    model = corrected(model, made, samples(calibration, batch, quantising.most))
    made = quantised(model, ranges, **given)
    content = made.SerializeToString()
    write_atomic(path, content)
    done = quantised_among(layers, made)
    return ExportReport(
        max_rel_error=report.max_rel_error,
        size_bytes=len(content),
        int8_layers=tuple(layer for layer in layers.own if layer in done),
        float_layers=tuple(layer for layer in layers.own if layer not in done),
    )


def export_onnx_signed(
    module: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    *,
    batch: int | None = 1,
    quantising: Quantising | None = None,
) -> ExportReport:
    """The same in the form that TensorRT reads: signed numbers around zero, biases in float."""
    return export_onnx_int8(module, example, path, batch=batch, quantising=quantising, signed=True)


def samples(batches: Iterable[Any], size: int, most: int = ENOUGH) -> Iterator[list[np.ndarray]]:
    """Inputs as arrays, ``size`` samples at a time, of ``batches``: pairs (inputs, targets), or inputs alone."""
    seen = 0
    for entry in batches:
        inputs = entry[0] if isinstance(entry, (tuple, list)) and len(entry) == 2 else entry
        leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        count = next((len(leaf) for leaf in leaves if leaf.dim()), 0)
        for start in range(0, count, size):
            if seen >= most:
                return
            part = [leaf[start : start + size] if leaf.dim() and len(leaf) == count else leaf for leaf in leaves]
            seen += min(size, count - start)
            yield [leaf.detach().cpu().numpy() for leaf in with_batch(part, size)]


def ranges_of(model: onnx.ModelProto, given: Iterable[list[np.ndarray]], least: int = LEAST) -> Ranges:
    """The range of every float tensor of ``model`` over samples, each a list of arrays in the order of its inputs.

    Raises:
        ExportError: fewer than ``least`` samples; a tensor is not finite (the message names it).
    """
    from onnxruntime.quantization import CalibrationMethod, calibrate

    reader = _Reader([value.name for value in model.graph.input], given)
    with tempfile.TemporaryDirectory(prefix="secateurs-ranges-") as folder, _quiet():
        file = Path(folder) / "float.onnx"
        onnx.save(_inferred(model), file)
        calibrator = calibrate.create_calibrator(
            file,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        try:
            calibrator.collect_data(reader)
        except ExportError:
            raise
        except Exception as error:
            raise unrunnable(error) from error
        require_enough(reader.count, least)
        found = calibrator.compute_data()
    ranges = {name: tuple(float(np.asarray(end).min()) for end in data.range_value) for name, data in found.items()}
    for name, (low, high) in ranges.items():
        require_finite(name, low, high)
    return {name: (low, high) for name, (low, high) in ranges.items()}


def _check_varying(model: onnx.ModelProto, ranges: Ranges) -> None:
    """Inputs and what layers give must vary over the samples.

    Raises:
        ExportError: one does not.
    """
    layers = [node.output[0] for node in model.graph.node if node.op_type in WEIGHTED]
    for name in (*(value.name for value in model.graph.input), *layers):
        require_varying(name, *ranges.get(name, (0.0, 1.0)))


def _check_known(layers: OnnxLayers, names: Collection[str]) -> None:
    """Nothing, if every name is a layer of the file.

    Raises:
        ExportError: one is not.
    """
    for name in sorted(set(names) - layers.own.keys()):
        known = ", ".join(sorted(layers.own))
        raise ExportError(
            f"Layer {name!r} is to stay in float, but no convolution or matrix product of the exported file is called "
            f"so: they are {known}. Correct the plan's precision."
        )


def unrunnable(error: Exception) -> ExportError:
    """What to tell of calibration samples that a network does not take."""
    return ExportError(
        f"The calibration samples cannot be run ({why(error)}). They must be what the network is called with."
    )


def require_enough(count: int, least: int = LEAST) -> None:
    """Nothing, if so many calibration samples tell the ranges of tensors.

    Raises:
        ExportError: they are fewer than ``least``.
    """
    if count < least:
        raise ExportError(
            f"{count} calibration samples tell too little of the ranges of the network's tensors: at least "
            f"{least} are needed, {ENOUGH} are better. Give more data."
        )


def require_finite(name: str, low: float, high: float) -> None:
    """Nothing, if the tensor ``name`` lies between finite numbers.

    Raises:
        ExportError: it does not.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ExportError(
            f"Tensor {name} is not finite on the calibration samples ({low:g} to {high:g}), so it has no range. "
            f"Look for NaN or infinity in the network's weights."
        )


def require_varying(name: str, low: float, high: float) -> None:
    """Nothing, if the tensor ``name`` is not one number on all samples.

    Raises:
        ExportError: it is.
    """
    if low == high:
        raise ExportError(
            f"Tensor {name} is {low + 0.0:g} on all calibration samples, so nothing tells its range. Look for "
            f"blank samples, or for a layer that gives the same whatever it is given."
        )


def require_finite_input(name: str, array: np.ndarray, first: int) -> None:
    """Nothing, if an input's calibration samples, of which ``array`` begins with number ``first``, are finite.

    Raises:
        ExportError: they are not.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ExportError(
            f"Tensor {name} is not finite in calibration samples {first} to {first + len(array) - 1}, so it has no "
            f"range. Look for NaN or infinity in the data."
        )


def quantised(
    model: onnx.ModelProto,
    ranges: Ranges,
    *,
    seven_bits: bool = False,
    signed: bool = False,
    in_float: Collection[str] = (),
) -> onnx.ModelProto:
    """``model`` (which is left alone) in int8: weights per output channel, activations by ``ranges``.

    ``signed``: activations are signed numbers around zero, in the form that TensorRT reads; ``in_float``: names of
    nodes that stay as they are.

    Raises:
        ExportError: the quantizer refuses the file.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, calibrate, qdq_quantizer, registry

    known = {
        name: calibrate.TensorData(lowest=_number(low), highest=_number(high)) for name, (low, high) in ranges.items()
    }
    try:
        with _quiet():
            quantizer = qdq_quantizer.QDQQuantizer(
                _inferred(without_repeated(model)),
                True,  # one scale per channel of a weight
                seven_bits,
                QuantType.QInt8,
                QuantType.QInt8 if signed else QuantType.QUInt8,
                calibrate.TensorsData(CalibrationMethod.MinMax, known),
                [],
                list(in_float),
                list({*registry.QLinearOpsRegistry, *registry.QDQRegistry}),
                dict(_SIGNED) if signed else {},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime's quantizer refuses the network: {why(error)}. Choose the float target instead."
        ) from error
    made: onnx.ModelProto = quantizer.model.model
    return made


class _Reader:
    """Samples as the calibrator asks for them; ``count``: of those that it took."""

    def __init__(self, names: list[str], given: Iterable[list[np.ndarray]]) -> None:
        self._names, self._given, self.count = names, iter(given), 0

    def __iter__(self) -> _Reader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        found = self.get_next()
        if found is None:
            raise StopIteration
        return found

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next inputs by name; None after the last."""
        arrays = next(self._given, None)
        if arrays is None:
            return None
        for name, array in zip(self._names, arrays, strict=True):
            require_finite_input(name, array, self.count)
        self.count += len(arrays[0])
        return dict(zip(self._names, arrays, strict=True))


def _number(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every value's shape, which the quantizer reads."""
    return onnx.shape_inference.infer_shapes(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences advice that the quantizer logs on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
