"""Which operators of an ONNX file are which layer, and which values pass between them: for a precision per layer.

An operator with weights is a layer. One without that reads a single value goes with the layer that made the value; one
that joins several (a sum, a product, a concatenation) goes with none.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from secateurs.network import Passed

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights."""
_SCOPES = "pkg.torch.onnx.name_scopes"
_INPUT = "\0input"


@dataclass(frozen=True)
class OnnxLayers:
    """Layers of a file by module path. ``operators``: names of their own nodes and, behind them, of those that go with
    them; ``own``: how many of these are the layer's own; ``passed``: values between them."""

    operators: Mapping[str, tuple[str, ...]]
    own: Mapping[str, tuple[str, ...]]
    passed: tuple[Passed, ...]

    def nodes(self, layers: Iterable[str]) -> list[str]:
        """Nodes of these layers, and of what goes with them."""
        return [node for layer in sorted(layers) for node in self.operators[layer]]


def layers_of(model: onnx.ModelProto) -> OnnxLayers:
    """The layers of a float file that PyTorch exported."""
    weights = {tensor.name for tensor in model.graph.initializer}
    sizes = _sizes(model)
    made_by: dict[str, str | None] = {value.name: _INPUT for value in model.graph.input if value.name not in weights}
    own: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    passed = []
    for node in model.graph.node:
        reads = list(dict.fromkeys(value for value in node.input if value in made_by))
        layer = _layer(node, weights)
        if layer is not None:
            own.setdefault(layer, []).append(node.name)
        elif len(reads) == 1:
            made = made_by[reads[0]]
            if made is not None and made != _INPUT:
                others.setdefault(made, []).append(node.name)
            made_by.update(dict.fromkeys(node.output, made))
            continue
        elif not reads:
            continue
        passed += [
            Passed(made_by[value], layer, sizes.get(value, 0))
            for value in reads
            if made_by[value] != _INPUT and (made_by[value] is not None or layer is not None)
        ]
        made_by.update(dict.fromkeys(node.output, layer))
    return OnnxLayers(
        {layer: (*nodes, *others.get(layer, ())) for layer, nodes in own.items()},
        {layer: tuple(nodes) for layer, nodes in own.items()},
        tuple(passed),
    )


def quantised_among(layers: OnnxLayers, made: onnx.ModelProto) -> frozenset[str]:
    """Layers whose every operator reads quantised weights in ``made``, a quantised file of the same network."""
    floats = {t.name for t in made.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    left = {node.name for node in made.graph.node if node.op_type in WEIGHTED and floats & set(node.input[:2])}
    return frozenset(layer for layer, nodes in layers.own.items() if left.isdisjoint(nodes))


def _layer(node: onnx.NodeProto, weights: set[str]) -> str | None:
    """The module path of an operator with weights: its weight's, else that of the call that it was made of."""
    if node.op_type not in WEIGHTED:
        return None
    held = [value for value in node.input[:2] if value in weights]
    if not held:
        return None
    path = held[0].partition(".parametrizations.")[0].rpartition(".")[0]
    return path or next(_called(node), None)


def _called(node: onnx.NodeProto) -> Iterator[str]:
    """The innermost module whose call a node was made of."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = [str(scope) for scope in ast.literal_eval(entry.value)]
            yield from filter(None, scopes[-2:-1])


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Numbers in every value whose shape is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: int(np.prod([max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim], dtype=np.int64))
        for values in (graph.value_info, graph.input, graph.output)
        for value in values
    }
