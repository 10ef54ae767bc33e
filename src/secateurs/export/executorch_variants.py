"""Networks of any widths as ExecuTorch programs, made by editing one lowered program instead of lowering again.

Lowering takes seconds to minutes. So the network is lowered dense and at a few known widths, and every integer that
differs between those files is recognised as the length of an axis: it can then be written for any widths. Weights are
cut to size without regard to which unit they belong to, since latency does not depend on their values.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from secateurs.errors import ExportError
from secateurs.export.alignment import aligned
from secateurs.export.executorch import Lowered, lower
from secateurs.export.program import to_program
from secateurs.export.torch_variants import operators_of
from secateurs.export.variants import DISSOLVED, kept_units
from secateurs.export.xnnpack_graph import (
    Json,
    becomes_clamp,
    drop_unused,
    integers,
    pass_scales_on,
    read_graph,
    replace_value,
    same_layout,
    tensor_of,
    write_graph,
)
from secateurs.network import AxisSpec, NetworkSpec
from secateurs.structure.apply import apply
from secateurs.structure.operators import RECTIFIERS, is_a

_PROBES, _DRAWS = (2, 3), 200
"""How many narrow networks are lowered: more where fewer cannot tell all axes apart."""
_NO_BUFFER = 0
Place = tuple[str, str, int]
"""Traced node, schema argument, and position in it."""


class Length(NamedTuple):
    """An integer that is ``factor`` times the length of ``axis``."""

    factor: int
    axis: AxisSpec


@dataclass
class _Parts:
    """An ExecuTorch program taken apart: ``file`` with its weights, and the graph of every XNNPACK delegate."""

    file: Any
    graphs: list[Json]

    @classmethod
    def of(cls, content: bytes) -> _Parts:
        from executorch.exir._serialize._program import deserialize_pte_binary

        file = deserialize_pte_binary(content)
        return cls(file, [read_graph(bytes(delegate.data)) for delegate in file.program.backend_delegate_data])

    def slots(self) -> Iterator[tuple[Any, Any]]:
        """Every place ``(container, key)`` of an integer that may depend on widths, always in the same order."""
        for value in self.file.program.execution_plan[0].values:
            if hasattr(value.val, "sizes"):
                yield from ((value.val.sizes, index) for index in range(len(value.val.sizes)))
            elif hasattr(value.val, "int_val"):
                yield vars(value.val), "int_val"
        for graph in self.graphs:
            yield from integers(graph["xvalues"])
            yield from integers(graph["xnodes"])

    def numbers(self) -> list[int]:
        """The integers in the slots."""
        return [int(container[key]) for container, key in self.slots()]


class ExecutorchVariants:
    """Builds the ExecuTorch program of a traced network at any widths.

    A file is one line of JSON, which says what every operator in it belongs to, and then the program.

    Args:
        graph: a traced network (``secateurs.structure.Graph``).
        batch: batch size.

    Raises:
        ExportError: the network cannot be exported, or its sizes are not recognised in the lowered program.
    """

    def __init__(self, graph: Any, batch: int = 1) -> None:
        self._graph, self.batch = graph, batch
        program = to_program(graph.model, (graph.args, graph.kwargs), batch=batch)
        self._traced = aligned(program.graph, graph.program.graph)
        self.operators = operators_of(program, self._traced)
        self._lowered = self._lower(program)
        self._parts = _Parts.of(self._lowered.content)
        self._meanings = self._recognised()
        self.dense_bytes: bytes = self.build(self.spec.dense_widths)

    @property
    def spec(self) -> NetworkSpec:
        """The network as numbers."""
        spec: NetworkSpec = self._graph.spec
        return spec

    def _lower(self, program: torch.export.ExportedProgram) -> Lowered:
        return lower(program)

    def _recognised(self) -> dict[int, Length | Place]:
        """What every integer that depends on widths is, by its position among the slots."""
        spec, example = self.spec, (self._graph.args, self._graph.kwargs)
        axes = _axes(spec)
        probes = _probes(spec, axes)
        rng = np.random.default_rng(1)
        kept = [kept_units(spec, widths, rng) for widths in probes]
        columns = [self._parts.numbers()]
        for units in kept:
            small = apply(self._graph.model, self._graph.plan(units), check=False)
            narrow = self._lower(to_program(small, example, batch=self.batch))
            columns.append(_Parts.of(narrow.content).numbers())
        if len({len(column) for column in columns}) > 1:
            raise ExportError(
                "ExecuTorch lowers this network to other operators at other widths, so files cannot be made by "
                "changing sizes. Choose another target."
            )
        widths = (spec.dense_widths, *probes)
        lengths = {tuple(int(axis.length(vector)) for vector in widths): axis for axis in axes}
        told = [self._graph.cut(units).constants for units in kept]
        places = {
            (self._constant({}, place), *(self._constant(constants, place) for constants in told)): place
            for place in _places(told)
        }
        rows = enumerate(zip(*columns, strict=True))
        return {position: _meaning(row, lengths, places) for position, row in rows if len(set(row)) > 1}

    def _constant(self, constants: Mapping[str, Mapping[str, Any]], place: Place) -> int:
        """The integer at ``place`` where ``constants`` changes some of the traced network's arguments."""
        name, argument, index = place
        value = constants.get(name, {}).get(argument)
        if value is None:
            node = self._graph.nodes[name]
            names = [entry.name for entry in node.target._schema.arguments]
            value = {**dict(zip(names, node.args, strict=False)), **node.kwargs}[argument]
        number = value[index] if isinstance(value, (list, tuple)) else value
        return number if isinstance(number, int) else -1

    def build(
        self,
        widths: np.ndarray,
        removed: frozenset[int] = frozenset(),
        rng: np.random.Generator | None = None,
    ) -> bytes:
        """The file with ``widths[g]`` units in group ``g`` and the blocks ``removed`` gone; see ``OnnxVariants``."""
        from executorch.exir._serialize._program import serialize_pte_binary

        widths = np.asarray(widths)
        whole = copy.copy(self._parts.file)
        whole.program = copy.deepcopy(whole.program)
        parts = _Parts(whole, copy.deepcopy(self._parts.graphs))
        slots = list(parts.slots())
        constants = self._graph.cut(kept_units(self.spec, widths, rng)).constants
        for position, meaning in self._meanings.items():
            container, key = slots[position]
            if isinstance(meaning, Length):
                container[key] = meaning.factor * int(meaning.axis.length(widths))
            else:
                container[key] = self._constant(constants, meaning)
        if removed:
            self._remove(parts, removed)
        _cut_outer_weights(whole.program)
        whole.named_data = _cut_weights(parts.graphs, self._parts.graphs, whole.named_data)
        for delegate, graph in zip(whole.program.backend_delegate_data, parts.graphs, strict=True):
            delegate.data = write_graph(graph)
        header = json.dumps({"instructions": self._labels(parts)}).encode()
        return header + b"\n" + bytes(serialize_pte_binary(whole, extract_delegate_segments=True))

    def _labels(self, parts: _Parts) -> dict[int, list[tuple[str, str]]]:
        """Per instruction, the kind and the exported node of every operator that it runs."""
        labels: dict[int, list[tuple[str, str]]] = {}
        plan = parts.file.program.execution_plan[0]
        for index, instruction in enumerate(plan.chains[0].instructions):
            delegate = getattr(instruction.instr_args, "delegate_index", None)
            if delegate is None:
                labels[index] = [("", self._lowered.calls.get(index, ""))]
                continue
            graph = parts.graphs[plan.delegates[delegate].processed.index]
            labels[index] = [
                (node["xnode_union_type"], self._lowered.names.get(node["debug_handle"], ""))
                for node in graph["xnodes"]
            ]
        return labels

    def _remove(self, parts: _Parts, removed: frozenset[int]) -> None:
        """Rewire the XNNPACK graphs around the removed blocks.

        Raises:
            ExportError: a block begins and ends in different XNNPACK graphs.
        """
        spec = self.spec
        names = tuple(spec.blocks[index].name for index in sorted(removed))
        bypassed = self._graph.cut(kept_units(spec, spec.dense_widths), names).bypassed
        moves: list[tuple[Json, dict[int, int]]] = [(graph, {}) for graph in parts.graphs]
        for gone, instead in bypassed.items():
            index, entry = self._writer(parts, gone)
            other, source = self._writer(parts, instead)
            graph, renamed = moves[index]
            found = same_layout(graph, entry, source["xnode_union"]["output_id"]) if index == other else None
            if found is None:
                raise ExportError(
                    f"The block that ends at {gone} reads {instead} from outside its XNNPACK graph, so it cannot be "
                    f"removed by editing. Plan without removing blocks, or choose another target."
                )
            if not becomes_clamp(graph, entry, found):
                renamed[entry["xnode_union"]["output_id"]] = found
        for graph, renamed in moves:
            for value in renamed:
                replace_value(graph, value, renamed)
        for graph in parts.graphs:
            drop_unused(graph)
            pass_scales_on(graph)

    def _writer(self, parts: _Parts, name: str) -> tuple[int, Json]:
        """Index of the XNNPACK graph, and the operator in it, that computes the traced node ``name``."""
        node = self._graph.nodes.get(name)
        while node is not None:
            handles = {handle for handle, known in self._lowered.names.items() if self._traced.get(known) == node.name}
            for index, graph in enumerate(parts.graphs):
                for entry in reversed(graph["xnodes"]):
                    if entry["debug_handle"] in handles:
                        return index, entry
            # Folded and fused operators have the value of what they read.
            same = is_a(node, DISSOLVED, RECTIFIERS)
            node = node.all_input_nodes[0] if same and node.all_input_nodes else None
        raise ExportError(
            f"Node {name} of the traced network has no counterpart in the lowered program. "
            f"Plan without removing blocks, or choose another target."
        )


def _axes(spec: NetworkSpec) -> list[AxisSpec]:
    """Every axis of the network that depends on widths, each once."""
    axes = [axis for layer in spec.layers for axis in (layer.inputs, layer.outputs)]
    axes += [axis for parameter in spec.parameters for axis in parameter.axes]
    axes += spec.activation_axes.values()
    return list(dict.fromkeys(axis for axis in axes if axis.parts))


def _probes(spec: NetworkSpec, axes: Sequence[AxisSpec]) -> list[np.ndarray]:
    """Widths at which every axis has lengths of its own, as far as that is possible."""
    rng = np.random.default_rng(0)
    dense, best, most = spec.dense_widths, [spec.dense_widths], -1
    # A single unit could be taken for a layer of another kind.
    least = np.minimum(np.maximum(spec.min_widths, 2), dense)
    for count in _PROBES:
        for _ in range(_DRAWS):
            drawn = [rng.integers(least, np.maximum(dense, least + 1)) for _ in range(count)]
            rows = {tuple(int(axis.length(widths)) for widths in drawn) for axis in axes}
            if len(rows) > most:
                best, most = drawn, len(rows)
        if most == len(axes):
            break
    return best


def _places(told: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[Place]:
    """Where the traced network's arguments hold integers that depend on widths."""
    found: dict[Place, None] = {}
    for constants in told:
        for name, changes in constants.items():
            for argument, value in changes.items():
                count = len(value) if isinstance(value, (list, tuple)) else 1
                found |= {(name, argument, index): None for index in range(count)}
    return list(found)


def _meaning(
    row: tuple[int, ...], lengths: Mapping[tuple[int, ...], AxisSpec], places: Mapping[tuple[int, ...], Place]
) -> Length | Place:
    """What an integer is that has these values in the dense file and the probes.

    Raises:
        ExportError: nothing in the network behaves so.
    """
    if row in lengths:
        return Length(1, lengths[row])
    if row in places:
        return places[row]
    for base, axis in lengths.items():
        factor, rest = divmod(row[0], base[0])
        if rest == 0 and all(value == factor * length for value, length in zip(row, base, strict=True)):
            return Length(factor, axis)
    raise ExportError(
        f"The lowered program holds the size {row[0]} (narrower networks: {', '.join(map(str, row[1:]))}), which is no "
        f"axis of the network, so files of other widths cannot be made. Choose another target."
    )


def _cut_weights(graphs: Sequence[Json], dense: Sequence[Json], named: Any) -> Any:
    """The weights at the sizes that ``graphs`` give them; their names are set there to fit the new content."""
    from executorch.exir._serialize._named_data_store import NamedDataStoreOutput

    buffers: list[bytes] = []
    entries: dict[str, Any] = {}
    for graph, before in zip(graphs, dense, strict=True):
        for index, dense_length, length in _constants(graph, before):
            source = before["constant_data"][index]
            entry = named.pte_data[source["named_key"]]
            whole = bytes(named.buffers[entry.buffer_index])
            data = whole[: len(whole) // dense_length * length]
            key = hashlib.sha256(data + str(index).encode()).hexdigest()
            graph["constant_data"][index] = {**source, "named_key": key, "size": len(data)}
            if key not in entries:
                entries[key] = type(entry)(len(buffers), entry.alignment, entry.tensor_layout)
                buffers.append(data)
    return NamedDataStoreOutput(buffers, entries, {})


def _constants(graph: Json, before: Json) -> Iterator[tuple[int, int, int]]:
    """Every constant of an XNNPACK graph: its number, how many elements it has in ``before``, and how many here.

    A weight of quantised numbers has its scales, one per channel, in a constant of their own.
    """
    sizes: dict[int, tuple[int, int]] = {}
    for value in before["xvalues"]:
        tensor, scales = tensor_of(value), value["xvalue_union"].get("quant_params", {})
        sizes[tensor["id_out"]] = math.prod(tensor["dims"]), scales.get("num_scales", 0)
    for value in graph["xvalues"]:
        tensor, scales = tensor_of(value), value["xvalue_union"].get("quant_params", {})
        elements, channels = sizes[tensor["id_out"]]
        if tensor["constant_buffer_idx"] != _NO_BUFFER:
            yield tensor["constant_buffer_idx"], elements, math.prod(tensor["dims"])
        if scales.get("scale_buffer_idx", _NO_BUFFER) != _NO_BUFFER:
            yield scales["scale_buffer_idx"], channels, scales["num_scales"]


def _cut_outer_weights(program: Any) -> None:
    """Constants of operators outside XNNPACK, cut to their tensors' new sizes."""
    for value in program.execution_plan[0].values:
        tensor = value.val
        index = getattr(tensor, "data_buffer_idx", 0)
        if index and tensor.allocation_info is None:
            buffer = program.constant_buffer[index]
            total = math.prod(tensor.sizes) * _itemsize(tensor.scalar_type)
            buffer.storage = bytes(buffer.storage)[:total] if total < len(buffer.storage) else buffer.storage


def _itemsize(scalar_type: Any) -> int:
    names = {"BYTE": 1, "CHAR": 1, "BOOL": 1, "SHORT": 2, "HALF": 2, "BFLOAT16": 2, "INT": 4, "FLOAT": 4}
    return names.get(str(scalar_type.name), 8)
