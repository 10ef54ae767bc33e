"""Networks of any widths as ONNX files, made by slicing one export instead of exporting again.

The network is exported once with batch normalisation folded and every weight redrawn, so that each initializer of the
file can be recognised by its *values*: the exporter renames and transposes as it likes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from secateurs.errors import ExportError, why
from secateurs.export.alignment import aligned, takes_all
from secateurs.export.artifacts import kept
from secateurs.export.constants import Constants
from secateurs.export.flat import exportable
from secateurs.export.onnx import OPSET, failure_of, quiet, with_batch
from secateurs.network import NetworkSpec, OperatorSpec
from secateurs.structure.fold import batch_norm_pairs, fold_batch_norm
from secateurs.structure.operators import BATCH_NORMS, COPIES, DROPOUTS, is_a
from secateurs.structure.untouched import exporting

Kept = Mapping[str, Mapping[int, Sequence[int]]]
"""Kept indices per parameter name and dimension."""


_SPLIT_OUTPUT = re.compile(r"_split_\d+$")
"""The exporter tells no origin of a Split, but names its outputs after the node."""
DISSOLVED = (*BATCH_NORMS, *DROPOUTS, *COPIES)


@dataclass(frozen=True)
class Origin:
    """Where an initializer's axes come from: axis ``i`` is dimension ``dims[i]`` of ``parameter`` (-1: length 1)."""

    parameter: str
    dims: tuple[int, ...]


def onnx_variants(graph: Any, batch: int = 1) -> OnnxVariants:
    """:class:`OnnxVariants` of the graph, exported once as long as it lives; arguments and errors are those."""
    return kept(graph, OnnxVariants, batch)


class OnnxVariants:
    """Builds the ONNX file of a traced network at any widths; the weights are random.

    Latency depends on how many units stay, not on which, so the first units of every group are kept.

    Args:
        graph: a traced network (``secateurs.structure.Graph``).
        batch: batch size of the files.

    Raises:
        ExportError: the network cannot be exported, or a prunable parameter is not found in the exported file.
    """

    def __init__(self, graph: Any, batch: int = 1) -> None:
        self._graph, self.batch = graph, batch
        self._pairs: dict[str, str] = dict(batch_norm_pairs(graph))
        module = _redrawn(fold_batch_norm(graph))
        program, onnx_program = _export(*exportable(module, *with_batch((graph.args, graph.kwargs), batch)))
        self._model: onnx.ModelProto = onnx_program.model_proto
        for node in self._model.graph.node:
            name = _fx_name(node) or _SPLIT_OUTPUT.sub("", node.output[0])
            del node.metadata_props[:]
            node.metadata_props.add(key="fx", value=name)
        _drop_metadata(self._model)
        traced = aligned(program.graph, graph.program.graph)
        roots = {node.name: traced.get(_root(node), "") for node in onnx_program.exported_program.graph.nodes}
        self.node_names = _node_names(self._model, roots)
        self._origins = _origins(self._model, module)
        self._values = _values(graph.program.graph, self.node_names)
        self._constants = Constants(self._model, self.node_names, graph)
        self._check_complete(module)
        self.operators = _operators(self._model, self.node_names)
        self.dense_bytes: bytes = self._model.SerializeToString()
        self._check_narrow()

    @property
    def spec(self) -> NetworkSpec:
        """The network as numbers."""
        spec: NetworkSpec = self._graph.spec
        return spec

    def build(
        self,
        widths: np.ndarray,
        removed: frozenset[int] = frozenset(),
        rng: np.random.Generator | None = None,
    ) -> bytes:
        """The ONNX file with ``widths[g]`` units in group ``g`` and the blocks ``removed`` gone.

        Args:
            widths: units kept per group, int [groups].
            removed: indices of removed blocks.
            rng: draws which units stay; None keeps the first ones.
        """
        cut, slices = self._cut(widths, removed, rng)
        model = self._shell()
        model.graph.node.extend(self._nodes(cut.bypassed))
        self._constants.patch(model, np.asarray(widths), cut)
        used = {value for node in model.graph.node for value in node.input}
        for tensor in self._model.graph.initializer:
            if tensor.name in used:
                model.graph.initializer.append(self._sliced(tensor, slices, self._origins))
        return model.SerializeToString()

    def _cut(
        self, widths: np.ndarray, removed: frozenset[int], rng: np.random.Generator | None = None
    ) -> tuple[Any, dict[str, Mapping[int, Sequence[int]]]]:
        """The graph's cut at these widths, and its slices with those of folded biases."""
        spec = self.spec
        cut = self._graph.cut(
            kept_units(spec, widths, rng), tuple(spec.blocks[index].name for index in sorted(removed))
        )
        return cut, folded_slices(cut.slices, self._pairs)

    def _nodes(self, bypassed: Mapping[str, str]) -> list[onnx.NodeProto]:
        """The nodes that stay."""
        return _rewired(list(self._model.graph.node), self._model.graph.output, bypassed, self._values)

    def _shell(self) -> onnx.ModelProto:
        """The model without nodes, weights and recorded shapes."""
        shell = onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        shell.graph.name = self._model.graph.name
        shell.graph.input.extend(self._model.graph.input)
        shell.graph.output.extend(self._model.graph.output)
        return shell

    def _sliced(self, tensor: onnx.TensorProto, slices: Kept, origins: Mapping[str, Origin]) -> onnx.TensorProto:
        origin = origins.get(tensor.name)
        axes = {} if origin is None else slices.get(origin.parameter, {})
        if origin is None or not axes:
            return tensor
        array = numpy_helper.to_array(tensor)
        for axis, dim in enumerate(origin.dims):
            kept = axes.get(dim) if dim >= 0 else None
            if kept is None or len(kept) == array.shape[axis]:
                continue
            if kept and kept[-1] - kept[0] == len(kept) - 1:
                # A run of indices is a view, far cheaper than a gather in networks with large weights.
                array = array[(slice(None),) * axis + (slice(kept[0], kept[-1] + 1),)]
            else:
                array = np.take(array, np.asarray(kept, dtype=np.int64), axis=axis)
        return numpy_helper.from_array(np.ascontiguousarray(array), tensor.name)

    def _check_narrow(self) -> None:
        """Files of few units must run.

        Raises:
            ExportError: one does not.
        """
        least, dense = self.spec.min_widths, self.spec.dense_widths
        rng = np.random.default_rng(0)
        for widths in (least, least + (dense - least) // 3):
            failure = failure_of(OnnxVariants.build(self, widths, rng=rng))
            if failure and not failure_of(self.dense_bytes):
                raise ExportError(
                    f"Files of other widths of this network do not run in ONNX Runtime ({failure}): it takes its units "
                    "apart in a way that is lost in the exported file. Choose a target that runs PyTorch itself, such "
                    "as torch-cpu, or --keep the layers in front."
                )

    def _check_complete(self, module: nn.Module) -> None:
        """Every parameter that a cut slices must have been found in the file.

        Raises:
            ExportError: one was not.
        """
        least = {group.name: tuple(range(group.min_units)) for group in self.spec.groups}
        slices = folded_slices(self._graph.cut(least).slices, self._pairs)
        present = dict(module.named_parameters()) | dict(module.named_buffers())
        found = {origin.parameter for origin in self._origins.values()}
        for name, axes in slices.items():
            tensor = present.get(name)
            if tensor is None or name in found or not tensor.is_floating_point():
                continue
            if any(len(kept) < tensor.shape[dim] for dim, kept in axes.items()):
                raise ExportError(
                    f"Parameter {name} {tuple(tensor.shape)} was not found in the exported ONNX file by its values, "
                    f"so files of other widths cannot be made by slicing. The exporter computed something from it; "
                    f"choose a target that runs PyTorch itself."
                )


def kept_units(
    spec: NetworkSpec, widths: np.ndarray, rng: np.random.Generator | None = None
) -> dict[str, tuple[int, ...]]:
    """Kept units per group: the first ``widths[g]``, or drawn by ``rng``."""
    kept = {}
    for group, width in zip(spec.groups, np.asarray(widths).tolist(), strict=True):
        chosen = range(width) if rng is None else sorted(rng.choice(group.units, width, replace=False).tolist())
        kept[group.name] = tuple(chosen)
    return kept


def folded_slices(slices: Kept, pairs: Mapping[str, str]) -> dict[str, Mapping[int, Sequence[int]]]:
    """``slices`` with those of the biases that folding created; ``pairs``: weight name to batch normalisation."""
    whole = dict(slices)
    for weight, norm in pairs.items():
        statistic = slices.get(f"{norm}.running_mean")
        if statistic is not None:
            whole.setdefault(weight.removesuffix("weight") + "bias", statistic)
    return whole


def _redrawn(module: nn.Module) -> nn.Module:
    """``module`` with random parameters and statistics, so that no two tensors are equal."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                fan = max(1, tensor[0].numel() if tensor.dim() > 1 else 1)
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / math.sqrt(fan))
    return module.eval()


def _export(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The exported program, and that of ONNX."""
    try:
        with exporting(module), quiet(), torch.no_grad():
            program = torch.export.export(module, args, kwargs, strict=False)
            return program, torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET)
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} cannot be exported to ONNX: {why(error)}. "
            f"Replace what the message names, or choose a target that runs PyTorch itself."
        ) from error


def _root(node: Any) -> str:
    """Name of the node of the undecomposed program that ``node`` came from."""
    name: str = node.name
    sources = node.meta.get("from_node") or []
    while sources:
        name, sources = sources[-1].name, sources[-1].from_node
    return name


def _fx_name(node: onnx.NodeProto) -> str | None:
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.fx_node":
            return str(entry.value).partition(" ")[0].lstrip("%").rstrip(":")
    return None


def _drop_metadata(model: onnx.ModelProto) -> None:
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for value in itertools.chain(model.graph.input, model.graph.output, model.graph.initializer):
        del value.metadata_props[:]


def _node_names(model: onnx.ModelProto, roots: Mapping[str, str]) -> dict[str, str]:
    """Undecomposed fx node name by ONNX value name, in the order of the file."""
    names = {}
    for node in model.graph.node:
        fx = next((str(entry.value) for entry in node.metadata_props if entry.key == "fx"), "")
        if fx in roots:
            names.update(dict.fromkeys(node.output, roots[fx]))
        del node.metadata_props[:]
    return names


def _operators(model: onnx.ModelProto, node_names: Mapping[str, str]) -> tuple[OperatorSpec, ...]:
    """The file's operators, with static shapes."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    weights = {tensor.name for tensor in graph.initializer}
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for group in (graph.value_info, graph.input, graph.output)
        for value in group
    }
    found = []
    for node in graph.node:
        reads = tuple(value for value in node.input if value and value not in weights)
        ends = (shapes.get(reads[0], ()) if reads else (), shapes.get(node.output[0], ()))
        found.append(
            OperatorSpec(node.name, node.op_type, node_names.get(node.output[0], ""), reads, tuple(node.output), ends)
        )
    return tuple(found)


def _values(graph: torch.fx.Graph, node_names: Mapping[str, str]) -> dict[str, str]:
    """ONNX value by fx node name; a node that folding or evaluation mode dissolved has its input's value."""
    values = {fx: value for value, fx in node_names.items()}
    for node in graph.nodes:
        if node.name in values:
            continue
        if node.op == "placeholder":
            values[node.name] = node.name
        elif (is_a(node, DISSOLVED) or takes_all(node)) and node.all_input_nodes:
            source = values.get(node.all_input_nodes[0].name)
            if source is not None:
                values[node.name] = source
    return values


def _origins(model: onnx.ModelProto, module: nn.Module) -> dict[str, Origin]:
    """Parameter and axes of every floating-point initializer that can be recognised by its values."""
    by_size: dict[int, list[tuple[str, np.ndarray]]] = {}
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_floating_point() and tensor.numel() > 0:
            array = tensor.detach().cpu().numpy()
            by_size.setdefault(array.size, []).append((name, array))
    origins = {}
    for initializer in model.graph.initializer:
        if initializer.data_type != onnx.TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(initializer)
        for name, candidate in by_size.get(array.size, ()):
            dims = _axes(array, candidate)
            if dims is not None:
                origins[initializer.name] = Origin(name, dims)
                break
    return origins


def _axes(array: np.ndarray, parameter: np.ndarray) -> tuple[int, ...] | None:
    """Dimension of ``parameter`` for each axis of ``array`` if it holds the same values transposed, else None."""
    ours = [axis for axis, length in enumerate(array.shape) if length > 1]
    theirs = [dim for dim, length in enumerate(parameter.shape) if length > 1]
    if len(ours) != len(theirs) or len(ours) > 5:
        return None
    mine, other = array.squeeze(), parameter.squeeze()
    for order in itertools.permutations(range(len(theirs))):
        if tuple(other.shape[index] for index in order) != mine.shape:
            continue
        if mine.size and mine.flat[-1] == other.flat[-1] and np.array_equal(mine, other.transpose(order)):
            dims = [-1] * array.ndim
            for axis, index in zip(ours, order, strict=True):
                dims[axis] = theirs[index]
            # A prunable dimension of length 1 still has its place when nothing was moved.
            if array.shape == parameter.shape and order == tuple(range(len(theirs))):
                dims = list(range(array.ndim))
            return tuple(dims)
    return None


def _rewired(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    bypassed: Mapping[str, str],
    values: Mapping[str, str],
) -> list[onnx.NodeProto]:
    """``nodes`` without those that only the bypassed values needed; consumers read the replacement.

    Raises:
        ExportError: a bypassed node has no counterpart in the file.
    """
    if not bypassed:
        return list(nodes)
    renamed = {}
    for gone, instead in bypassed.items():
        if gone not in values or instead not in values:
            missing = gone if gone not in values else instead
            raise ExportError(
                f"Node {missing} of the traced network has no counterpart in the exported ONNX file, so the block that "
                f"ends at {gone} cannot be removed there. Plan without removing blocks."
            )
        renamed[values[gone]] = values[instead]

    def final(value: str) -> str:
        while value in renamed:
            value = renamed[value]
        return value

    copies = []
    for node in nodes:
        if any(value in renamed for value in node.input):
            fresh = onnx.NodeProto()
            fresh.CopyFrom(node)
            for index, value in enumerate(fresh.input):
                fresh.input[index] = final(value)
            node = fresh
        copies.append(node)
    needed, stay = {value.name for value in outputs}, []
    for node in reversed(copies):
        if any(value in needed for value in node.output):
            stay.append(node)
            needed.update(node.input)
    return stay[::-1]
