"""ONNX operators that look at neighbours: pools, pads and sizes of windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.models.onnx_file.values import Value, operator

Attributes = Mapping[str, Any]
Given = Sequence[Value]


@operator("GlobalAveragePool")
def _global_average(given: Given, attributes: Attributes, opset: int) -> Value:
    return given[0].mean(list(range(2, given[0].ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_max(given: Given, attributes: Attributes, opset: int) -> Value:
    return given[0].amax(list(range(2, given[0].ndim)), keepdim=True)


@operator("MaxPool")
def _max_pool(given: Given, attributes: Attributes, opset: int) -> Value:
    values, kernel, pads = _pooled(given[0], attributes, -math.inf)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return pool(
        values,
        kernel,
        attributes.get("strides") or 1,
        pads,
        attributes.get("dilations") or 1,
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


@operator("AveragePool")
def _average_pool(given: Given, attributes: Attributes, opset: int) -> Value:
    inside = not attributes.get("count_include_pad", 0)
    values, kernel, pads = _pooled(given[0], attributes, 0.0)
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    strides, ceil = attributes.get("strides") or 1, bool(attributes.get("ceil_mode", 0))
    found = pool(values, kernel, strides, pads, ceil_mode=ceil, count_include_pad=not inside)
    if inside and values is not given[0]:  # padded beforehand: what lies outside counts for nothing
        ones, _, _ = _pooled(torch.ones_like(given[0][:1, :1]), attributes, 0.0)
        found = found / pool(ones, kernel, strides, pads, ceil_mode=ceil)
    return found


def _pooled(values: Tensor, attributes: Attributes, fill: float) -> tuple[Tensor, list[int], Any]:
    """Values, padded already where the two sides differ; the kernel; what is padded evenly."""
    kernel = list(attributes["kernel_shape"])
    strides = attributes.get("strides") or [1] * len(kernel)
    pads = pads_of(attributes, kernel, strides, list(values.shape[2:]))
    even = pads[: len(kernel)]
    if even == pads[len(kernel) :] and all(2 * pad <= size for pad, size in zip(even, kernel, strict=True)):
        return values, kernel, even
    return F.pad(values, flat_pads(pads), value=fill), kernel, 0


def pads_of(attributes: Attributes, kernel: Sequence[int], strides: Sequence[int], sizes: Sequence[Any]) -> list[int]:
    """[begin …, end …] as the attributes say: given, or so that outputs are ceil(size / stride)."""
    kind = attributes.get("auto_pad", "NOTSET")
    if kind == "NOTSET":
        return list(attributes.get("pads") or [0] * (2 * len(kernel)))
    if kind == "VALID":
        return [0] * (2 * len(kernel))
    dilations = attributes.get("dilations") or [1] * len(kernel)
    begin, end = [], []
    for side, stride, size, dilation in zip(kernel, strides, sizes, dilations, strict=True):
        total = max((-(-int(size) // stride) - 1) * stride + (side - 1) * dilation + 1 - int(size), 0)
        small, large = total // 2, total - total // 2
        begin.append(small if kind == "SAME_UPPER" else large)
        end.append(large if kind == "SAME_UPPER" else small)
    return [*begin, *end]


def flat_pads(pads: Sequence[int]) -> list[int]:
    """As ``F.pad`` takes them: last axis first."""
    half = len(pads) // 2
    return [one for axis in range(half - 1, -1, -1) for one in (pads[axis], pads[axis + half])]
