"""From which density on the sparse convolution pays: measured per layer shape against the dense runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from secateurs.elements.operator import channels_last
from secateurs.elements.selection import SHARES, eligible
from secateurs.errors import PlanError
from secateurs.latency.lock import measuring
from secateurs.measure.kernel_times import ConvShape, KernelPoint, KernelTimes, break_even
from secateurs.provenance import store_key
from secateurs.structure import Graph

_ROUNDS, _RUNS = 9, 3


@dataclass(frozen=True)
class BreakEven:
    """One layer shape: ``count`` layers of the network have it.

    ``positions``: of the kernel, of a 1×1 the steps in which its input channels may go; ``dense_ms``: oneDNN through
    PyTorch, weight packed ahead; ``sparse_ms``: by number of kept positions, the last one all; ``density``: the largest
    share of kept elements at which the sparse kernel is still the faster one (1: always).
    """

    layer: str
    shape: str
    channels: int
    filters: int
    positions: int
    count: int
    dense_ms: float
    sparse_ms: dict[int, float]
    density: float


def break_evens(graph: Graph, times: KernelTimes) -> list[BreakEven]:
    """Every layer shape of the network that can lose elements; kept in the store of ``times``.

    Raises:
        PlanError: no layer can lose elements.
        TargetUnavailableError: the compiled kernels are missing.
    """
    shapes: dict[tuple[ConvShape, int, int], list[str]] = {}
    widths, can = graph.spec.dense_widths, set(eligible(graph.model, pointwise=True))
    for layer in graph.spec.layers:
        module = graph.model.get_submodule(layer.parameter.rpartition(".")[0])
        if layer.parameter in can and getattr(module, "groups", 1) == 1:
            sides = int(layer.inputs.length(widths)), int(layer.outputs.length(widths))
            shapes.setdefault((ConvShape.of(layer, module), *sides), []).append(layer.name)
    if not shapes:
        raise PlanError(
            "No convolution of this network has kernel elements to lose: all are grouped, depthwise, or read the image."
        )
    times.ms([point for key in shapes for point in _points(*key)])  # all in one go, so that they take turns
    return [_measured(*key, names, times) for key, names in shapes.items()]


def _points(shape: ConvShape, channels: int, filters: int) -> list[KernelPoint]:
    return [KernelPoint(shape, channels, filters, int(n) * shape.positions / _steps(shape)) for n in _counts(shape)]


def _counts(shape: ConvShape) -> np.ndarray:
    """Kept positions, or steps, that are timed."""
    return np.unique(np.linspace(1, _steps(shape), min(_steps(shape), 9)).round().astype(int))


def _steps(shape: ConvShape) -> int:
    return shape.positions if shape.positions > 1 else SHARES


def _measured(shape: ConvShape, channels: int, filters: int, names: Sequence[str], times: KernelTimes) -> BreakEven:
    points = _points(shape, channels, filters)
    signature = store_key("break-even", shape, f"c{channels}-f{filters}")
    sparse = {int(count): float(ms) for count, ms in zip(_counts(shape), times.ms(points), strict=True)}
    held = None if times.store is None else times.store.get(times.fingerprint, signature)
    if held is None:
        dense_ms = _dense_ms(shape, channels, filters, times)
        found = BreakEven(
            names[0], str(shape), channels, filters, _steps(shape), len(names), dense_ms, sparse,
            break_even(sparse, dense_ms, _steps(shape)),
        )  # fmt: skip
        if times.store is not None:
            times.store.put(times.fingerprint, {signature: asdict(found)})
        return found
    return BreakEven(**{**held, "layer": names[0], "count": len(names), "sparse_ms": sparse})


def _dense_ms(shape: ConvShape, channels: int, filters: int, times: KernelTimes) -> float:
    """Median over rounds of the fastest run of the dense convolution with bias and ReLU, channels last."""
    x = channels_last(torch.randn(1, channels, *shape.input_hw))
    top, left, bottom, right = shape.padding
    if (top, left) != (bottom, right):
        # Uneven padding is padded ahead, as runtimes do.
        x, top, left = channels_last(torch.nn.functional.pad(x, (left, right, top, bottom))), 0, 0
    weight, bias = torch.randn(filters, channels, *shape.kernel), torch.zeros(filters)
    stride, dilation, padding = list(shape.stride), list(shape.dilation), [top, left]
    before = torch.get_num_threads()
    torch.set_num_threads(times.threads)
    try:
        with torch.inference_mode():
            packed = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
                weight.to_mkldnn(), padding, stride, dilation, 1, list(x.shape)
            )

            def run() -> float:
                start = time.perf_counter()
                torch.ops.mkldnn._convolution_pointwise(x, packed, bias, padding, stride, dilation, 1, "relu", [], "")
                return 1e3 * (time.perf_counter() - start)

            run()
            with measuring(times.progress):
                return float(np.median([min(run() for _ in range(_RUNS)) for _ in range(_ROUNDS)]))
    finally:
        torch.set_num_threads(before)
