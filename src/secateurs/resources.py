"""What a network takes besides time, as cost models over the widths: multiply-adds, bytes of the file, peak memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from secateurs.cost import CostModel, CostTerm
from secateurs.network import AxisSpec, LayerSpec, NetworkSpec, ParameterSpec

BYTES_PER_SCALAR = 4
"""Files and activations are float32."""

SHARPNESS = 8
"""Exponent of the norm over layers that stands in for the largest one."""


@dataclass(frozen=True)
class Product:
    """``scale`` times the lengths of the axes that count."""

    scale: float
    inputs: bool = True
    outputs: bool = True

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        rows, columns = np.broadcast_arrays(np.asarray(inputs, np.float64), np.asarray(outputs, np.float64))
        return self.scale * (rows if self.inputs else 1.0) * (columns if self.outputs else np.ones_like(columns))


def macs_model(spec: NetworkSpec) -> CostModel:
    """Multiply-adds at batch 1; equal to :meth:`NetworkSpec.macs`."""
    terms = []
    for layer in spec.layers:
        work = layer.positions * layer.kernel_elements
        if layer.kind == "depthwise":
            cost = Product(work, inputs=False)
        elif layer.group_inputs is not None:
            cost = Product(work * layer.group_inputs, inputs=False)
        else:
            cost = Product(work / layer.groups)
        inputs = layer.inputs if cost.inputs else None
        terms.append(CostTerm(layer.name, inputs, layer.outputs, cost, layer.blocks))
    return CostModel("macs", 0.0, tuple(terms))


@dataclass(frozen=True)
class Seen:
    """Bytes, of memory or of the file, that one network was seen to take."""

    widths: np.ndarray
    removed: frozenset[int]
    bytes: float


def size_model(spec: NetworkSpec, dense_bytes: float | None = None, seen: Sequence[Seen] = ()) -> CostModel:
    """Bytes of the deployed file: its parameters in float, and what ``dense_bytes`` (the dense file) holds besides.

    Other formats take other bytes: int8 files a byte per weight, and a scale, a zero point and a bias per channel. With
    four files or more of the format ``seen``, it is what they hold per entry of a matrix or filter, per entry of a
    vector, per parameter and besides, by least squares of relative errors, none below 0.
    """
    terms = tuple(_stored(spec))
    if len(seen) < 4:
        weights = _at_dense(spec, terms)
        return CostModel("bytes", max(0.0, (dense_bytes or weights) - weights), terms)
    dims = {parameter.name: len(parameter.axes) for parameter in spec.parameters}
    parts = [tuple(term for term in terms if (dims[term.name] > 1) is matrices) for matrices in (True, False)]
    parts.append(
        tuple(CostTerm(term.name, None, term.outputs, Product(1.0, False, False), term.blocks) for term in terms)
    )
    models = [CostModel("bytes", 0.0, part) for part in parts]
    found = np.array([[1.0, *(model.evaluate(one.widths, one.removed) for model in models)] for one in seen])
    taken = np.array([[one.bytes] for one in seen])
    offset, *slopes = _nonnegative(found / taken, np.ones(len(seen)))
    return CostModel("bytes", offset, tuple(_times(t, k) for k, part in zip(slopes, parts, strict=True) for t in part))


def _nonnegative(rows: np.ndarray, values: np.ndarray) -> list[float]:
    """Coefficients >= 0 with the least squares; columns are scaled first, for they differ by orders of magnitude."""
    from scipy.optimize import nnls

    scales = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    return [float(value) for value in nnls(rows / scales, values)[0] / scales]


def memory_model(spec: NetworkSpec, batch: int = 1, seen: Sequence[Seen] = ()) -> CostModel:
    """Peak bytes that the network adds to the runtime's process: parameters, and the activations where most live.

    A peak is a maximum over layers, which no sum of terms is. Here it is the layers' activations (input and output)
    weighted by the gradient of their 8-norm at the dense widths, so that layers near the peak count. Runtimes take
    several times that much and something fixed: both follow from measured networks, a line through the first and the
    last of ``seen``. Our own reading; the closed loop corrects what it errs.
    """
    held = np.array([_activations(layer, spec.dense_widths) for layer in spec.layers]) * batch
    peak = max(float(held.max(initial=0.0)), 1.0)
    norm = float(np.sum((held / peak) ** SHARPNESS) ** (1 / SHARPNESS)) or 1.0
    weights = (held / peak / norm) ** (SHARPNESS - 1) * batch
    terms = [*_stored(spec), *(t for layer, w in zip(spec.layers, weights, strict=True) for t in _alive(layer, w))]
    bare = CostModel("bytes", 0.0, tuple(terms))
    if len(seen) < 2:
        return bare
    first, last = (float(bare.evaluate(one.widths, one.removed)) for one in (seen[0], seen[-1]))
    slope = max(1.0, (seen[0].bytes - seen[-1].bytes) / max(first - last, 1.0))
    offset = max(0.0, seen[0].bytes - slope * first)
    return CostModel("bytes", offset, tuple(_times(term, slope) for term in terms))


def _times(term: CostTerm, factor: float) -> CostTerm:
    assert isinstance(term.cost, Product)
    return replace(term, cost=replace(term.cost, scale=term.cost.scale * factor))


def _at_dense(spec: NetworkSpec, terms: tuple[CostTerm, ...]) -> float:
    return float(CostModel("bytes", 0.0, terms).evaluate(spec.dense_widths))


def _stored(spec: NetworkSpec) -> Iterator[CostTerm]:
    for parameter in spec.parameters:
        if parameter.trainable:
            yield _parameter_term(parameter, spec.dense_widths)


def _parameter_term(parameter: ParameterSpec, dense: np.ndarray) -> CostTerm:
    """Bytes of a parameter; of more than two axes that vary, the last ones count at full length."""
    varying = [axis for axis in parameter.axes if axis.parts]
    fixed = [axis for axis in parameter.axes if not axis.parts] + varying[2:]
    scale = float(BYTES_PER_SCALAR)
    for axis in fixed:
        scale *= int(axis.length(dense))
    outputs = varying[0] if varying else None
    inputs = varying[1] if len(varying) > 1 else None
    cost = Product(scale, inputs is not None, outputs is not None)
    return CostTerm(parameter.name, inputs, outputs, cost, parameter.blocks)


def _positions(layer: LayerSpec) -> tuple[int, int]:
    """Positions of a layer's input and of its output."""
    return int(np.prod(layer.input_hw)) if layer.input_hw else layer.positions, layer.positions


def _activations(layer: LayerSpec, widths: np.ndarray) -> float:
    before, after = _positions(layer)
    return float(BYTES_PER_SCALAR * (before * layer.inputs.length(widths) + after * layer.outputs.length(widths)))


def _alive(layer: LayerSpec, weight: float) -> Iterator[CostTerm]:
    for axis, positions in zip((layer.inputs, layer.outputs), _positions(layer), strict=True):
        if weight * positions > 1e-3:
            yield _axis_term(layer, axis, weight * positions * BYTES_PER_SCALAR)


def _axis_term(layer: LayerSpec, axis: AxisSpec, scale: float) -> CostTerm:
    return CostTerm(f"{layer.name} (activations)", None, axis, Product(scale, inputs=False), layer.blocks)
