"""Layer normalisation that an older file spells out in nine nodes, as the one node that newer files have.

Spelled out, its means over channels would keep them all; as a layer it is known what may go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from secateurs.models.onnx_file.graph import OnnxGraph, OnnxNode


def with_layer_norms(graph: OnnxGraph) -> OnnxGraph:
    """The graph with every spelled-out layer normalisation over the last axis as one node."""
    found = _Finder(graph)
    made = {id(node): one for node in graph.nodes if (one := found.norm_at(node)) is not None}
    if not made:
        return graph
    nodes = [made.get(id(node), node) for node in graph.nodes]
    return replace(graph, nodes=tuple(_used(nodes, graph.outputs)))


def _used(nodes: list[OnnxNode], outputs: tuple[str, ...]) -> list[OnnxNode]:
    """The nodes that lead to the outputs."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.outputs):
            needed |= set(node.inputs)
            kept.append(node)
    return kept[::-1]


class _Finder:
    """Looks backwards from the last addition."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.constants: Mapping[str, np.ndarray] = graph.constants
        self.makers = {name: node for node in graph.nodes for name in node.outputs}

    def norm_at(self, node: OnnxNode) -> OnnxNode | None:
        """``(x - mean) / sqrt(variance + eps) * weight + bias`` that ends in this node, as one."""
        scaled, bias = self._with_constant(node, "Add")
        divided, weight = self._with_constant(self.makers.get(scaled), "Mul")
        division = self.makers.get(divided)
        if weight is None or bias is None or division is None or division.op != "Div":
            return None
        centred, root = (self.makers.get(name) for name in division.inputs)
        source = self._centred(centred)
        variance, eps = self._with_constant(self._of(root, "Sqrt"), "Add")
        if source is None or eps is None or np.size(self.constants[eps]) != 1 or not self._spread(variance, source):
            return None
        about = {"axis": -1, "epsilon": float(np.ravel(self.constants[eps])[0])}
        return OnnxNode(division.name, "LayerNormalization", (source, weight, bias), node.outputs, about)

    def _of(self, node: OnnxNode | None, op: str) -> OnnxNode | None:
        """What makes the input of a node of this kind."""
        return self.makers.get(node.inputs[0]) if node is not None and node.op == op else None

    def _with_constant(self, node: OnnxNode | None, op: str) -> tuple[str, str | None]:
        """(the other input, the constant) of a node of this kind."""
        if node is None or node.op != op or len(node.inputs) != 2:
            return "", None
        one, two = node.inputs
        if two in self.constants:
            return one, two
        return (two, one) if one in self.constants else ("", None)

    def _mean(self, name: str) -> str | None:
        """What a value is the mean of, over the last axis."""
        node = self.makers.get(name)
        if node is None or node.op != "ReduceMean" or not node.attributes.get("keepdims", 1):
            return None
        axes = node.attributes.get("axes")
        if axes is None and len(node.inputs) > 1 and node.inputs[1] in self.constants:
            axes = np.ravel(self.constants[node.inputs[1]]).tolist()
        return node.inputs[0] if axes is not None and list(axes) == [-1] else None

    def _centred(self, node: OnnxNode | None) -> str | None:
        """What a node takes the mean off."""
        if node is None or node.op != "Sub" or self._mean(node.inputs[1]) != node.inputs[0]:
            return None
        return node.inputs[0]

    def _spread(self, name: str, source: str) -> bool:
        """Whether a value is the variance of another."""
        square = self.makers.get(self._mean(name) or "")
        if square is None or square.op not in ("Pow", "Mul"):
            return False
        two = self.constants.get(square.inputs[1])
        squared = square.inputs[0] == square.inputs[1] if square.op == "Mul" else two is not None and np.all(two == 2)
        return bool(squared) and self._centred(self.makers.get(square.inputs[0])) == source
