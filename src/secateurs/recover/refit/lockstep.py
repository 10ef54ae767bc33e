"""Running an exported network operator by operator over all calibration batches at once.

Repairing a layer changes the inputs of every later one. Re-running the network for each of its layers would cost layers
x network; stepping once through its operators with every batch alive costs one run. Live activations bound the number
of images, so their size is computed beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from secateurs.data.calls import Inputs
from secateurs.errors import StructureError, why
from secateurs.structure.operators import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, is_a, operator_name
from secateurs.structure.untouched import exporting


@dataclass(frozen=True)
class Weighted:
    """One call of a convolution or linear map.

    ``weight``/``bias``: parameter names (bias None where there is none); ``use``: how often the weight was used before.
    """

    node: fx.Node
    weight: str
    bias: str | None
    use: int

    @property
    def key(self) -> tuple[str, int]:
        """What the same call is known by in another network with the same parameter names."""
        return self.weight, self.use


class Lane:
    """One network on its way through all batches.

    Args:
        module: in evaluation mode; parameters are read at the moment of use, so that changes take effect.
        example: a batch; the network is exported at its shape.

    Raises:
        StructureError: the network cannot be exported.
    """

    def __init__(self, module: nn.Module, example: Inputs) -> None:
        try:
            with exporting(module):
                program = torch.export.export(module, *_split(example), strict=False)
        except Exception as error:
            raise StructureError(
                f"The network cannot be exported for repair ({why(error)}). Re-estimate batch norm only, or fine-tune."
            ) from error
        self.nodes = [node for node in program.graph.nodes if node.op != "output"]
        self.names, self.inputs, held = _placeholders(program)
        tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        tensors.update(module.named_buffers(remove_duplicate=False))
        self.tensors = {**held, **tensors}
        self.weighted = _weighted(self.nodes, self.names)
        self.others = _others(self.nodes, self.names)
        self._last_use = _last_uses(self.nodes)
        self._place = 0
        self.count = 0
        self.values: dict[fx.Node, list[Any] | Any] = {}
        self._per_batch: set[fx.Node] = set()

    def feed(self, batches: Sequence[Inputs]) -> None:
        """Put the network back to its start, with these inputs."""
        self._place, self.count = 0, len(batches)
        fed = [node for node in self.nodes if node.op == "placeholder" and node.name in self.inputs]
        # a network may change its inputs in place
        given = [[_copied(leaf) for leaf in pytree.tree_leaves(_split(batch))] for batch in batches]
        self.values = {node: [batch[place] for batch in given] for place, node in enumerate(fed)}
        self._per_batch = set(fed)

    def advance(self, until: fx.Node, *, after: bool = False) -> None:
        """Compute everything before ``until``, or up to and with it."""
        while self._place < len(self.nodes):
            node = self.nodes[self._place]
            if node is until and not after:
                return
            self._compute(node)
            self._place += 1
            if node is until:
                return

    def value(self, node: fx.Node) -> list[Any] | None:
        """A node's values, one per batch, None where they are not there (yet or any more)."""
        if node not in self.values:
            return None
        held = self.values[node]
        return held if node in self._per_batch else [held] * self.count

    def peak_bytes(self) -> int:
        """Largest sum of live activations of one batch."""
        live, peak = 0, 0
        for place, node in enumerate(self.nodes):
            live += _size(node)
            peak = max(peak, live)
            live -= sum(_size(gone) for gone in self._last_use.get(place, ()))
        return peak

    def _compute(self, node: fx.Node) -> None:
        if node.op == "placeholder" and node not in self.values:
            self.values[node] = self.tensors[self.names[node.name]]
        elif node.op != "placeholder":
            inputs = [source for source in node.all_input_nodes if source in self._per_batch]
            if inputs:
                self._per_batch.add(node)
                self.values[node] = [self._call(node, batch) for batch in range(self.count)]
            else:
                self.values[node] = self._call(node, 0)
        for gone in self._last_use.get(self._place, ()):
            self.values.pop(gone, None)

    def _call(self, node: fx.Node, batch: int) -> Any:
        def resolve(source: fx.Node) -> Any:
            held = self.values[source]
            return held[batch] if source in self._per_batch else held

        arguments, named = fx.map_arg((node.args, node.kwargs), resolve)
        if not callable(node.target):
            raise StructureError(f"Operator {node.target} cannot be run for repair. Re-estimate batch norm only.")
        with torch.no_grad():
            return node.target(*arguments, **named)


def _split(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    return ((inputs,), None) if isinstance(inputs, Tensor) else (inputs.args, dict(inputs.kwargs))


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _placeholders(program: torch.export.ExportedProgram) -> tuple[dict[str, str], set[str], dict[str, Tensor]]:
    """Placeholder to parameter or buffer name; the user's inputs; constants by name."""
    names: dict[str, str] = {}
    inputs: set[str] = set()
    constants: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            inputs.add(spec.arg.name)
        elif spec.target is not None:
            names[spec.arg.name] = spec.target
            held = program.state_dict.get(spec.target, program.constants.get(spec.target))
            if isinstance(held, Tensor):
                constants[spec.target] = held
    return names, inputs, constants


def _weighted(nodes: Sequence[fx.Node], names: dict[str, str]) -> list[Weighted]:
    found: list[Weighted] = []
    uses: dict[str, int] = {}
    for node in nodes:
        if not _is_weighted(node):
            continue
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        if isinstance(weight, fx.Node) and weight.name in names:
            name = names[weight.name]
            label = names.get(bias.name) if isinstance(bias, fx.Node) else None
            found.append(Weighted(node, name, label, uses.get(name, 0)))
            uses[name] = uses.get(name, 0) + 1
    return found


def _is_weighted(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node.target) in ("aten.conv2d.default", "aten.linear.default")


def _others(nodes: Sequence[fx.Node], names: dict[str, str]) -> list[str]:
    """Weights of convolutions that are of another kind than :class:`Weighted` ones."""
    called = [n for n in nodes if is_a(n, CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS) and not _is_weighted(n)]
    weights = [node.args[1] for node in called if len(node.args) > 1]
    return [names[weight.name] for weight in weights if isinstance(weight, fx.Node) and weight.name in names]


def _last_uses(nodes: Sequence[fx.Node]) -> dict[int, list[fx.Node]]:
    place = {node: index for index, node in enumerate(nodes)}
    gone: dict[int, list[fx.Node]] = {}
    for node in nodes:
        # what the network returns stays
        if all(user in place for user in node.users):
            gone.setdefault(max([place[node], *(place[user] for user in node.users)]), []).append(node)
    return gone


def _size(node: fx.Node) -> int:
    held = node.meta.get("val")
    if node.op == "placeholder" or not isinstance(held, Tensor):
        return 0
    return held.numel() * held.element_size()
