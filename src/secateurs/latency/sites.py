"""Operators of the model file as cost sites, and the runtime's fused operators matched back to them.

A *site* is what a runtime may fuse into one operator: a weighted operator with the element-wise ones that follow it,
or any other operator alone. Its cost depends on the lengths of its input's and its output's channel axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from secateurs.latency.targets._base import Operation
from secateurs.network import AxisSpec, LayerSpec, NetworkSpec

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_POINTWISE = {
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "PRelu", "Gelu", "Erf",
    "Mish", "Softplus", "Add", "Sub", "Mul", "Div", "Min", "Max", "BatchNormalization", "Cast", "Identity", "Sqrt",
    "Pow", "Neg", "Abs", "Exp", "Swish",
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """One cost site.

    ``name``: module path of the layer, or the fx node's name; ``inputs``/``outputs``: channel axes, None where the
    cost does not depend on them; ``blocks``: it vanishes with any of these; ``signature``: sites with equal
    signatures do the same work at equal lengths and are learnt together.
    """

    name: str
    inputs: AxisSpec | None
    outputs: AxisSpec | None
    blocks: tuple[int, ...]
    signature: tuple[str | int, ...]


class SiteMap:
    """Sites of one model file.

    Args:
        model: the dense ONNX file.
        node_names: fx node name by ONNX value name.
        spec: the network.
    """

    def __init__(self, model: onnx.ModelProto, node_names: Mapping[str, str], spec: NetworkSpec) -> None:
        self._names, self._spec = node_names, spec
        self._layers = {layer.node: layer for layer in spec.layers}
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self._shapes = _shapes(model)
        anchors = self._anchors(model)
        members: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            members.setdefault(anchors[node.output[0]], []).append(node)
        self.sites: tuple[Site, ...] = tuple(self._site(nodes) for nodes in members.values())
        position = {anchor: index for index, anchor in enumerate(members)}
        # Some runtimes speak of nodes, some of values.
        self._of_name = {node.name: position[anchors[node.output[0]]] for node in model.graph.node if node.name}
        self._of_name |= {value: position[anchor] for value, anchor in anchors.items()}

    def _anchors(self, model: onnx.ModelProto) -> dict[str, str]:
        """First output value of the site's first node, for every value that a node produces."""
        anchors: dict[str, str] = {}
        order: dict[str, int] = {}
        weighted: set[str] = set()
        for index, node in enumerate(model.graph.node):
            first = node.output[0]
            order[first] = index
            feeding = [anchors[value] for value in node.input if value in anchors]
            owner = first
            if node.op_type in _POINTWISE and feeding:
                # An Add of two branches is fused into the branch that is computed last.
                candidates = [anchor for anchor in feeding if anchor in weighted] or feeding
                owner = max(candidates, key=lambda anchor: order[anchor])
            elif node.op_type in _WEIGHTED:
                weighted.add(first)
            for value in node.output:
                anchors[value] = owner
        return anchors

    def _layer(self, nodes: Sequence[onnx.NodeProto]) -> LayerSpec | None:
        for node in nodes:
            layer = self._layers.get(self._names.get(node.output[0], ""))
            if layer is not None:
                return layer
        return None

    def _axis(self, value: str) -> AxisSpec | None:
        axis = self._spec.activation_axes.get(self._names.get(value, ""))
        return axis if axis is not None and axis.parts else None

    def _site(self, nodes: Sequence[onnx.NodeProto]) -> Site:
        first = nodes[0]
        kinds = tuple(node.op_type for node in nodes)
        shapes = tuple("x".join(map(str, self._shapes.get(value, ()))) for value in (first.input[0], first.output[0]))
        layer = self._layer(nodes)
        if layer is not None:
            inputs = layer.inputs if layer.inputs.parts and layer.kind != "depthwise" else None
            outputs = layer.outputs if layer.outputs.parts else None
            detail = (layer.kind, layer.kernel_elements, layer.stride, layer.groups)
            return Site(layer.name, inputs, outputs, layer.blocks, (*kinds, *shapes, *detail))
        outputs = next((axis for node in nodes if (axis := self._axis(node.output[0])) is not None), None)
        sources = [self._axis(value) for value in first.input if value not in self._constants]
        inputs = next((axis for axis in sources if axis is not None), None)
        if inputs == outputs or (outputs is not None and len(sources) > 1):
            inputs = None
        fx = self._names.get(first.output[0], first.output[0])
        blocks = self._spec.node_blocks.get(fx, ())
        return Site(fx, inputs, outputs, blocks, (*kinds, *shapes))

    def attribute(self, operations: Sequence[Operation]) -> tuple[list[float], list[int], float]:
        """Time in ms and number of operators per site, and the ms that belong to no site (a fixed cost)."""
        ms, counts, loose = [0.0] * len(self.sites), [0] * len(self.sites), 0.0
        for operation in operations:
            index = next((self._of_name[name] for name in operation.names if name in self._of_name), None)
            if index is None:
                loose += operation.ms
            else:
                ms[index] += operation.ms
                counts[index] += 1
        return ms, counts, loose


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes by value name."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for group in (inferred.graph.value_info, inferred.graph.input, inferred.graph.output):
        for value in group:
            shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return shapes
