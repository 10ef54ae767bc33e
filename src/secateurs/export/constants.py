"""Integers that an ONNX file keeps about sizes (pads, shapes, splits), re-derived for other widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from secateurs.errors import ExportError
from secateurs.network import AxisSpec, NetworkSpec
from secateurs.structure.cut import Cut, Parts
from secateurs.structure.operators import ATTENTIONS, NARROWS, SLICES, is_a, writes

UnitAxes = tuple[tuple[int, ...], Mapping[int, AxisSpec]]
"""Shape of a traced value, and the lengths of the axes that units lie on."""

KEYS = ".key"
_WITH_SAME = ("LayerNormalization", "GroupNormalization", "Mul", "Add", "Sub", "Div")
_LARGEST, _FAR = np.iinfo(np.int64).max, 2**31 - 2


def unit_axes(graph: Any) -> dict[str, UnitAxes]:
    """Of every value of a traced network (``secateurs.structure.Graph``) the shape and the axes of its units.

    Of attention also those of its keys, by its name and :data:`KEYS`: a file turns them round with sizes of its own.
    """
    found: dict[str, UnitAxes] = {}
    for name, value in graph.analysis.values.items():
        factors = getattr(value, "factors", ())
        if factors:
            dims = {factor.dim for factor in factors}
            axes = {dim: graph.units.axis(value.along(dim), value.shape[dim]) for dim in dims}
            found[name] = (tuple(value.shape), axes)
    for node in graph.nodes.values():
        if is_a(node, ATTENTIONS) and len(node.args) > 1 and node.args[1].name in found:
            found[node.name + KEYS] = found[node.args[1].name]
    return found


def _slices(node: torch.fx.Node) -> dict[int, str]:
    """The slices, by axis, that a call in place writes into."""
    found: dict[int, str] = {}
    view = node.args[0]
    while isinstance(view, torch.fx.Node) and is_a(view, SLICES):
        dim = view.args[1] if len(view.args) > 1 else 0
        assert isinstance(dim, int)
        found.setdefault(dim, view.name)
        view = view.args[0]
    return found


class Constants:
    """Knows which integer inputs of a dense ONNX file depend on widths.

    Args:
        model: the dense file.
        node_names: undecomposed fx node name by ONNX value name.
        graph: the traced network (``secateurs.structure.Graph``).
    """

    def __init__(self, model: onnx.ModelProto, node_names: Mapping[str, str], graph: Any) -> None:
        self._names, self._shaped = node_names, unit_axes(graph)
        self._spec: NetworkSpec = graph.spec
        nodes = graph.program.graph.nodes
        self._narrowed = {node.name for node in nodes if is_a(node, NARROWS)}
        self._written = {node.name: _slices(node) for node in nodes if writes(node)}
        # Who quantises a file gives a layer the output of the activation behind it, and leaves it its name.
        self._outputs = {node.name: node.output[0] for node in model.graph.node if node.name}
        integers = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        self._integers = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if tensor.data_type in integers
        }
        self._same = {
            tensor.name: array for tensor in model.graph.initializer if (array := _uniform(tensor)) is not None
        }
        self._fronts = {
            node.output[0]: next(one.ints[0] for one in node.attribute if one.name == "perm")
            for node in model.graph.node
            if node.op_type == "Transpose"
        }

    def _traced(self, node: onnx.NodeProto) -> str:
        """The traced node that a node of the file comes from, "" where that is not known."""
        return self._names.get(self._outputs.get(node.name, node.output[0]), "")

    def _axis(self, value: str) -> AxisSpec | None:
        axis = self._spec.activation_axes.get(self._names.get(value, ""))
        return axis if axis is not None and axis.parts else None

    def patch(self, model: onnx.ModelProto, widths: np.ndarray, cut: Cut) -> None:
        """Give every node of ``model`` that needs it new integer inputs for ``widths``, which ``cut`` leaves.

        Raises:
            ExportError: a constant of the traced network has no place in the file.
        """
        for index, node in enumerate(model.graph.node):
            traced = self._traced(node) if node.op_type != "ScatterND" else self._slice_of(node)
            told = cut.constants.get(traced, {})
            if "groups" in told and node.op_type in ("Conv", "ConvTranspose"):
                _set_integer(node, "group", told["groups"])
            new = self._replacements(node, widths, told, cut.parts.get(traced, ()))
            if not new:
                continue
            fresh = onnx.NodeProto()
            fresh.CopyFrom(node)
            for position, value in new.items():
                # Nodes share equal constants, so a changed one gets a name of its own.
                name = f"{node.input[position]}_of_{index}"
                model.graph.initializer.append(numpy_helper.from_array(value, name))
                fresh.input[position] = name
            node.CopyFrom(fresh)

    def _replacements(
        self, node: onnx.NodeProto, widths: np.ndarray, told: Mapping[str, Any], parts: Parts
    ) -> dict[int, np.ndarray]:
        """New integer arrays by input position of ``node``."""
        if node.op_type == "Pad":
            return self._pad(node, told)
        if node.op_type in ("Reshape", "Expand"):
            return self._shape(node, widths, told)
        if node.op_type == "ConstantOfShape":
            return self._shape(node, widths, told, 0)
        if node.op_type == "ScatterND":
            return self._range(node, told, parts)
        if node.op_type in _WITH_SAME:
            return self._same_values(node, widths)
        if node.op_type == "Slice":
            return self._slice(node, told, parts)
        if node.op_type == "Split":
            return self._split(node, parts)
        if node.op_type == "Gather" and "index" in told:
            return self._scalar(node, 1, told["index"])
        return {}

    def _pad(self, node: onnx.NodeProto, told: Mapping[str, Any]) -> dict[int, np.ndarray]:
        amounts = told.get("pad")
        if amounts is None:
            return {}
        old = self._integers.get(node.input[1])
        if old is None:
            raise self._misplaced(node)
        rank = len(old) // 2
        new = np.zeros_like(old)
        # torch lists (begin, end) from the last dimension, ONNX all begins from the first and then all ends.
        for step in range(len(amounts) // 2):
            new[rank - 1 - step] = amounts[2 * step]
            new[2 * rank - 1 - step] = amounts[2 * step + 1]
        return {1: new}

    def _shape(
        self, node: onnx.NodeProto, widths: np.ndarray, told: Mapping[str, Any], position: int = 1
    ) -> dict[int, np.ndarray]:
        old = self._integers.get(node.input[position])
        if old is None:
            return {}
        new = old.copy()
        listed = told.get("size", told.get("shape"))
        if listed is not None and len(listed) == len(old):
            for index, value in enumerate(listed):
                # The first dimension is the batch, which the traced network may hold as a symbol.
                if isinstance(value, int) and index > 0 and new[index] != -1:
                    new[index] = value
        elif self._along_units(node, old) and node.op_type == "Reshape":
            for dim, axis in self._along_units(node, old).items():
                new[dim] = axis.length(widths)
        elif node.op_type == "Reshape" and self._axis(node.output[0]) and len(old) > 1 and not (old == -1).any():
            new[1] = -1
        return {} if np.array_equal(new, old) else {position: new}

    def _along_units(self, node: onnx.NodeProto, old: np.ndarray) -> dict[int, AxisSpec]:
        """The axes of a shape on which units lie, where it is that of the traced value."""
        turned = self._of_keys(node, old)
        if turned:
            return turned
        shape, axes = self._shaped.get(self._traced(node), ((), {}))
        if len(shape) != len(old) or any(size not in (-1, have) for size, have in zip(old[1:], shape[1:], strict=True)):
            return {}
        return {dim: axis for dim, axis in axes.items() if dim > 0 and axis.parts and old[dim] != -1}

    def _of_keys(self, node: onnx.NodeProto, old: np.ndarray) -> dict[int, AxisSpec]:
        """The same of keys [batch, heads, length, size] that attention turns: as [-1, length, size], and back as
        [batch, heads, size, length]."""
        shape, axes = self._shaped.get(self._traced(node) + KEYS, ((), {}))
        if len(shape) != 4:
            return {}
        _, heads, length, size = shape
        places = {2: 3} if old.tolist() == [-1, length, size] else {}
        places = {1: 1, 2: 3} if len(old) == 4 and old[1:].tolist() == [heads, size, length] else places
        return {place: axes[dim] for place, dim in places.items() if dim in axes and axes[dim].parts}

    def _slice(self, node: onnx.NodeProto, told: Mapping[str, Any], parts: Parts) -> dict[int, np.ndarray]:
        start, end = self._part(node, parts) if len(parts) > 1 else (told.get("start"), told.get("end"))
        if self._traced(node) in self._narrowed and ("length" in told or "start" in told):
            first = self._lone(node, 1)
            length = told.get("length", self._lone(node, 2) - first)
            end = (first if start is None else start) + length
        new: dict[int, np.ndarray] = {}
        for value, position in ((start, 1), (end, 2)):
            if isinstance(value, int):
                new.update(self._scalar(node, position, min(value, _LARGEST)))
        return new

    def _slice_of(self, node: onnx.NodeProto) -> str:
        """The traced slice that a ScatterND writes into; its axis was brought to the front."""
        traced = self._traced(node)
        return self._written.get(traced, {}).get(self._fronts.get(node.input[0], 0), traced)

    def _range(self, node: onnx.NodeProto, told: Mapping[str, Any], parts: Parts) -> dict[int, np.ndarray]:
        """The places that a ScatterND writes to."""
        old = self._integers.get(node.input[1])
        if old is None or old.ndim != 2 or old.shape[1] != 1:
            return {}
        first, axis = told.get("start", int(old[0, 0])), self._fronts.get(node.input[0], 0)
        end = told.get("end", int(old[-1, 0]) + 1)
        if parts and parts[0][0][axis] == len(old):
            end = first + parts[0][1][axis]
        return {1: np.arange(first, end, dtype=old.dtype)[:, None]} if end - first != len(old) or told else {}

    def _same_values(self, node: onnx.NodeProto, widths: np.ndarray) -> dict[int, np.ndarray]:
        """Constants of one value along units, such as the ones that stand for the scale of a normalisation that has
        none."""
        shape, axes = self._shaped.get(self._traced(node), ((), {}))
        found = {}
        for position, name in enumerate(node.input):
            old = self._same.get(name)
            if old is None or old.ndim > len(shape):
                continue
            lengths = list(old.shape)
            for place in range(old.ndim):
                dim = len(shape) - old.ndim + place
                if dim in axes and axes[dim].parts and old.shape[place] == shape[dim]:
                    lengths[place] = int(axes[dim].length(widths))
            if lengths != list(old.shape):
                found[position] = np.full(lengths, old.reshape(-1)[0], dtype=old.dtype)
        return found

    def _part(self, node: onnx.NodeProto, parts: Parts) -> tuple[int, int] | tuple[None, None]:
        """Start and end of a slice that is one of the parts of an axis."""
        if len(node.input) < 4:
            return None, None
        axis, first, end = (self._lone(node, position) for position in (3, 1, 2))
        before = after = 0
        for dense, left in parts:
            if dense[axis] and before == first and (end - first == dense[axis] or end > _FAR):
                return after, after + left[axis]
            before, after = before + dense[axis], after + left[axis]
        return None, None

    def _lone(self, node: onnx.NodeProto, position: int) -> int:
        old = self._integers.get(node.input[position])
        if old is None or old.size != 1:
            raise self._misplaced(node)
        return int(old.reshape(-1)[0])

    def _scalar(self, node: onnx.NodeProto, position: int, value: int) -> dict[int, np.ndarray]:
        old = self._integers.get(node.input[position])
        if old is None or old.size != 1:
            raise self._misplaced(node)
        return {position: np.full(old.shape, value, dtype=old.dtype)}

    def _split(self, node: onnx.NodeProto, parts: Parts) -> dict[int, np.ndarray]:
        old = self._integers.get(node.input[1]) if len(node.input) > 1 else None
        axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
        if old is None or not parts or [dense[axis] for dense, _ in parts] != old.tolist():
            return {}
        return {1: np.array([left[axis] for _, left in parts], dtype=old.dtype)}

    def _misplaced(self, node: onnx.NodeProto) -> ExportError:
        return ExportError(
            f"The ONNX operator {node.op_type} {node.name} computes its sizes in the graph, where a constant was "
            f"expected (traced node {self._traced(node)}). Files of other widths cannot be made by "
            f"slicing; choose a target that runs PyTorch itself."
        )


def _uniform(tensor: onnx.TensorProto) -> np.ndarray | None:
    """A float constant of several equal numbers."""
    if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < 2:
        return None
    array = numpy_helper.to_array(tensor)
    flat = array.reshape(-1)
    return array if flat[0] == flat[-1] and (flat == flat[0]).all() else None


def _set_integer(node: onnx.NodeProto, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
            return
    node.attribute.append(onnx.helper.make_attribute(name, value))
