"""Activations that change nothing: a ReLU of what a ReLU gave, however it was moved in between.

They arise where a residual block is removed behind a padded shortcut: what the addition brought below zero is gone.
A quantizer takes a ReLU into the operator in front of it and gives that one the range of the ReLU, so a move of values
would change their scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import numpy_helper

_MOVES = ("Slice", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "Expand", "Gather")
"""Operators that give what they were given in their first input."""
Bounds = tuple[float, float]
_ANY: Bounds = (-math.inf, math.inf)


def without_repeated(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` (which is left alone) without ReLUs and clips of what lies within their bounds anyway; itself where
    there is none.

    What the file gives keeps its name: an activation that makes an output of the file stays.
    """
    numbers, outputs = _numbers(model), {value.name for value in model.graph.output}
    known: dict[str, Bounds] = {}
    instead: dict[str, str] = {}
    for node in model.graph.node:
        source = instead.get(node.input[0], node.input[0]) if node.input else ""
        before = known.get(source, _ANY)
        own = _bounds(node, numbers)
        if own is not None and own[0] <= before[0] and before[1] <= own[1] and node.output[0] not in outputs:
            instead[node.output[0]] = source
        else:
            known[node.output[0]] = _after(node, before, own, numbers)
    return _renamed(model, instead) if instead else model


def _bounds(node: onnx.NodeProto, numbers: Mapping[str, float]) -> Bounds | None:
    """Of an activation that only clips."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type != "Clip":
        return None
    given = [*node.input[1:], "", ""][:2]
    if any(name and name not in numbers for name in given):
        return None
    return tuple(numbers.get(name, end) for name, end in zip(given, _ANY, strict=True))  # type: ignore[return-value]


def _after(node: onnx.NodeProto, before: Bounds, own: Bounds | None, numbers: Mapping[str, float]) -> Bounds:
    """Bounds of what a node gives."""
    if own is not None:
        return max(before[0], own[0]), min(before[1], own[1])
    if node.op_type != "Pad":
        return before if node.op_type in _MOVES else _ANY
    mode = next((entry.s for entry in node.attribute if entry.name == "mode"), b"constant")
    if mode != b"constant":
        return before
    name = node.input[2] if len(node.input) > 2 else ""
    value = numbers.get(name) if name else 0.0
    return _ANY if value is None else (min(before[0], value), max(before[1], value))


def _numbers(model: onnx.ModelProto) -> dict[str, float]:
    """Constants that are a single number."""
    held = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            held += [(node.output[0], entry.t) for entry in node.attribute if entry.name == "value"]
    single = [(name, numpy_helper.to_array(tensor)) for name, tensor in held if math.prod(tensor.dims) == 1]
    return {name: float(array.item()) for name, array in single if array.dtype.kind in "fiu"}


def _renamed(model: onnx.ModelProto, instead: Mapping[str, str]) -> onnx.ModelProto:
    """A copy in which nothing makes or reads what has another name now."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:]
    for node in model.graph.node:
        if node.output and node.output[0] in instead:
            continue
        copy = found.graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [instead.get(name, name) for name in node.input]
    return found
