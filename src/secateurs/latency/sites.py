"""Operators of a deployed file as cost sites, and the runtime's fused operators matched back to them.

A *site* is what a runtime may fuse into one operator: a weighted operator with the element-wise ones that follow it,
or any other operator alone. Its cost depends on the lengths of its input's and its output's channel axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from secateurs.latency.targets._base import Operation
from secateurs.network import AxisSpec, LayerSpec, NetworkSpec, OperatorSpec

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_POINTWISE = {
    "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "PRelu", "Gelu", "Erf",
    "Mish", "Softplus", "Add", "Sub", "Mul", "Div", "Min", "Max", "BatchNormalization", "Cast", "Identity", "Sqrt",
    "Pow", "Neg", "Abs", "Exp", "Swish",
}  # fmt: skip
MOST_FOLLOWERS = 3


@dataclass(frozen=True)
class Site:
    """One cost site.

    ``name``: module path of the layer, or the fx node's name; ``inputs``/``outputs``: channel axes, None where the
    cost does not depend on them; ``blocks``: it vanishes with any of these; ``signature``: sites with equal
    signatures do the same work at equal lengths and are learnt together; ``followers``: when all of these blocks are
    removed, only a shortcut's own operators read it, and a runtime may compute just what they need.
    """

    name: str
    inputs: AxisSpec | None
    outputs: AxisSpec | None
    blocks: tuple[int, ...]
    signature: tuple[str | int, ...]
    followers: tuple[int, ...] = ()


class SiteMap:
    """Sites of one model file.

    Args:
        operators: of the dense file, in execution order.
        spec: the network.
    """

    def __init__(self, operators: Sequence[OperatorSpec], spec: NetworkSpec) -> None:
        self._spec = spec
        self._layers = {layer.node: layer for layer in spec.layers}
        self._axes: dict[str, AxisSpec | None] = {}
        for operator in operators:
            axis = spec.activation_axes.get(operator.node)
            for value in operator.writes:
                self._axes[value] = axis if axis is not None and axis.parts else None
        anchors = _anchors(operators)
        members: dict[str, list[OperatorSpec]] = {}
        for operator in operators:
            members.setdefault(anchors[operator.writes[0]], []).append(operator)
        self.sites: tuple[Site, ...] = tuple(
            replace(self._site(fused), followers=self._followers(fused, operators)) for fused in members.values()
        )
        position = {anchor: index for index, anchor in enumerate(members)}
        # Some runtimes speak of operators, some of values.
        self._of_name = {operator.name: position[anchors[operator.writes[0]]] for operator in operators}
        self._of_name |= {value: position[anchor] for value, anchor in anchors.items()}

    def _layer(self, fused: Sequence[OperatorSpec]) -> LayerSpec | None:
        return next((self._layers[operator.node] for operator in fused if operator.node in self._layers), None)

    def _site(self, fused: Sequence[OperatorSpec]) -> Site:
        first = fused[0]
        kinds = tuple(operator.kind for operator in fused)
        shapes = tuple("x".join(map(str, shape)) for shape in first.shapes)
        layer = self._layer(fused)
        if layer is not None:
            inputs = layer.inputs if layer.inputs.parts and layer.kind != "depthwise" else None
            outputs = layer.outputs if layer.outputs.parts else None
            # A fixed side is told as length 0, so it must not be learnt together with sides that vary.
            detail = (layer.kind, layer.kernel_elements, layer.stride, layer.groups, inputs is None, outputs is None)
            return Site(layer.name, inputs, outputs, layer.blocks, (*kinds, *shapes, *detail))
        written = [self._axes[operator.writes[0]] for operator in fused]
        outputs = next((axis for axis in written if axis is not None), None)
        sources = [self._axes.get(value) for value in first.reads]
        inputs = next((axis for axis in sources if axis is not None), None)
        if inputs == outputs or (outputs is not None and len(sources) > 1):
            inputs = None
        blocks = self._spec.node_blocks.get(first.node, ())
        signature: tuple[str | int, ...] = (*kinds, *shapes, inputs is None, outputs is None)
        return Site(first.node or first.name, inputs, outputs, blocks, signature)

    def _followers(self, fused: Sequence[OperatorSpec], operators: Sequence[OperatorSpec]) -> tuple[int, ...]:
        own, found = set(self._spec.node_blocks.get(fused[0].node, ())), set[int]()
        frontier, seen = list(fused[-1].writes), set[str]()
        while frontier:
            value, removable, stays = frontier.pop(), set[int](), False
            seen.add(value)
            for operator in operators:
                if value not in operator.reads:
                    continue
                leaving = set(self._spec.node_blocks.get(operator.node, ())) - own
                removable |= leaving
                if not leaving and operator.kind in _POINTWISE:
                    frontier.extend(set(operator.writes) - seen)
                stays = stays or not (leaving or operator.kind in _POINTWISE)
            found |= removable
            # Without a block, what follows it is read here.
            ends = {self._spec.blocks[block].add for block in removable} if not stays else set()
            frontier.extend(value for entry in operators if entry.node in ends for value in entry.writes)
        return tuple(sorted(found)) if len(found) <= MOST_FOLLOWERS else ()

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


def _anchors(operators: Sequence[OperatorSpec]) -> dict[str, str]:
    """First value written by the first operator of the site, for every value written."""
    anchors: dict[str, str] = {}
    order: dict[str, int] = {}
    weighted: set[str] = set()
    for index, operator in enumerate(operators):
        first = operator.writes[0]
        order[first] = index
        feeding = [anchors[value] for value in operator.reads if value in anchors]
        owner = first
        if operator.kind in _POINTWISE and feeding:
            # An Add of two branches is fused into the branch that is computed last.
            candidates = [anchor for anchor in feeding if anchor in weighted] or feeding
            owner = max(candidates, key=lambda anchor: order[anchor])
        elif operator.kind in _WEIGHTED:
            weighted.add(first)
        anchors.update(dict.fromkeys(operator.writes, owner))
    return anchors
