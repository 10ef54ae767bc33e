"""Int8 networks of any widths, made by slicing the tensors of quantised files.

Values do not change how long an int8 operator takes, so ranges come from one run of random inputs through the dense
network. Which operators lie between which quantised values depends on the blocks that are there: each set of removed
blocks is quantised once, at dense widths, and what is sliced afterwards are integers, scales and zero points.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from torch.utils import _pytree as pytree

from secateurs.export.artifacts import kept
from secateurs.export.onnx import with_batch
from secateurs.export.quantised import Ranges, quantised, ranges_of
from secateurs.export.variants import OnnxVariants, Origin

_KEPT = 8
"""Quantised files at dense widths that are held, one for each set of removed blocks."""
_STEPS = ("DequantizeLinear", "QuantizeLinear")
"""What reads a weight: integers are dequantised; in TensorRT's form floats are quantised first."""
_INTEGERS, _SCALE, _ZERO = "_quantized", "_scale", "_zero_point"


def quantised_variants(graph: Any, batch: int = 1) -> QuantisedVariants:
    """:class:`QuantisedVariants` of the graph, made once as long as it lives; arguments and errors are those."""
    return kept(graph, QuantisedVariants, batch)


class QuantisedVariants(OnnxVariants):
    """Builds the int8 ONNX file of a traced network at any widths; arguments and errors as of its base class.

    ``signed``: in the form that TensorRT reads.
    """

    signed = False

    def __init__(self, graph: Any, batch: int = 1) -> None:
        super().__init__(graph, batch)
        self._bases: OrderedDict[frozenset[int], tuple[onnx.ModelProto, dict[str, Origin]]] = OrderedDict()
        self._ranges: Ranges = ranges_of(self._model, _drawn(graph, batch), least=1)
        self.dense_bytes = self._base(frozenset())[0].SerializeToString()

    def build(
        self, widths: np.ndarray, removed: frozenset[int] = frozenset(), rng: np.random.Generator | None = None
    ) -> bytes:
        """The int8 file with ``widths[g]`` units in group ``g`` and without the blocks ``removed``."""
        cut, slices = self._cut(widths, removed, rng)
        base, origins = self._base(removed)
        model = onnx.ModelProto()
        model.CopyFrom(base)
        del model.graph.initializer[:]
        self._constants.patch(model, np.asarray(widths), cut)
        used = {value for node in model.graph.node for value in node.input}
        model.graph.initializer.extend(
            self._sliced(tensor, slices, origins) for tensor in base.graph.initializer if tensor.name in used
        )
        return model.SerializeToString()

    def _base(self, removed: frozenset[int]) -> tuple[onnx.ModelProto, dict[str, Origin]]:
        """The int8 file at dense widths without these blocks, and where its tensors come from."""
        if removed in self._bases:
            self._bases.move_to_end(removed)
        else:
            model = quantised(self._without(removed), self._ranges, signed=self.signed)
            del model.graph.value_info[:]
            self._bases[removed] = model, origins_of(model, self._origins)
            if len(self._bases) > _KEPT:
                self._bases.popitem(last=False)
        return self._bases[removed]

    def _without(self, removed: frozenset[int]) -> onnx.ModelProto:
        """The float file at dense widths without these blocks."""
        cut, _ = self._cut(self.spec.dense_widths, removed)
        model = self._shell()
        model.graph.node.extend(self._nodes(cut.bypassed))
        used = {value for node in model.graph.node for value in node.input}
        model.graph.initializer.extend(tensor for tensor in self._model.graph.initializer if tensor.name in used)
        return model


class SignedVariants(QuantisedVariants):
    """The same in the form that TensorRT reads."""

    signed = True


def origins_of(model: onnx.ModelProto, floats: Mapping[str, Origin]) -> dict[str, Origin]:
    """Where the axes of a quantised file's tensors come from, by those of the float tensors.

    A weight's integers lie as the weight does; its scales and zero points, one per channel, along one of its axes.
    """
    axis = {node.input[0]: _axis(node) for node in model.graph.node if node.op_type in _STEPS}
    found = dict(floats)
    for tensor in model.graph.initializer:
        integers = tensor.name
        for ending in (_SCALE, _ZERO):
            integers = integers.removesuffix(ending)
        for name in (integers, f"{integers}{_INTEGERS}"):
            origin = floats.get(name.removesuffix(_INTEGERS))
            if origin is None or tensor.name in floats:
                continue
            if tensor.name == name:
                found[tensor.name] = origin
            elif name in axis and len(tensor.dims) == 1:
                found[tensor.name] = Origin(origin.parameter, (origin.dims[axis[name]],))
    return found


def _axis(node: onnx.NodeProto) -> int:
    return next((entry.i for entry in node.attribute if entry.name == "axis"), 1)


def _drawn(graph: Any, batch: int) -> list[list[np.ndarray]]:
    """One batch of the example's own kind, its floats drawn anew."""
    generator = torch.Generator().manual_seed(2)

    def redraw(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor

    given = pytree.tree_map_only(torch.Tensor, redraw, with_batch((graph.args, graph.kwargs), batch))
    return [[leaf.numpy() for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]]
